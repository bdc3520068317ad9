#include "worker/engine/base/memory.h"

#ifdef QUANTRY_JEMALLOC

#include <jemalloc/jemalloc.h>

// Read by jemalloc before main. Nothing is given back by the clock, and large
// tensors are kept as small ones are.
extern "C" {
const char* malloc_conf = "oversize_threshold:0,dirty_decay_ms:-1,muzzy_decay_ms:-1";
}

namespace quantry::engine {

void KeepFreedMemory() {}

void ReturnFreedMemory() {
  static_assert(MALLCTL_ARENAS_ALL == 4096, "the name below has it in digits");
  mallctl("arena.4096.purge", nullptr, nullptr, nullptr, 0);
}

}  // namespace quantry::engine

#else

#include <malloc.h>

namespace quantry::engine {

// Larger values would only hold memory longer.
void KeepFreedMemory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 128 << 20);
}

void ReturnFreedMemory() { malloc_trim(0); }

}  // namespace quantry::engine

#endif
