#pragma once

namespace quantry::engine {

// Keeps freed tensors in the process, where the allocator does not already.
// They come and go thousands of times in a search; by default each would be
// mapped and faulted in anew, a third of the time of a small job.
void KeepFreedMemory();

// Gives what was freed and kept back to the system, that of all threads.
// For the ends of large steps: it costs milliseconds, and sizes that one step
// uses and the next does not would add up.
void ReturnFreedMemory();

}  // namespace quantry::engine
