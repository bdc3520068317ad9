#pragma once

namespace quantry::engine {

// From here on neither this process nor anything it loads can start a program:
// execve and execveat answer EPERM. Call it before threads are made. For an
// engine whose parent confined it, which had to leave execve open for its
// start. false when the kernel refuses (before Linux 3.17, other machines than
// x86-64 and arm64).
bool ForbidPrograms();

}  // namespace quantry::engine
