// The system calls a confined engine may make: computing, its files, its own
// threads. No links, sockets, programs' ends but its own, debugging, namespaces,
// mounts, keys, modules or io_uring. What is not allowed answers ENOSYS, as a
// kernel without the call would, so that libraries fall back.
#pragma once

#include <linux/filter.h>

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"

namespace quantry {

struct SyscallFilter {
  // For seccomp. Its last step before use, in the process it confines: write
  // getpid() into `k` of the instructions in `own_pid`, which let the process
  // send signals to itself.
  std::vector<sock_filter> program;
  std::vector<std::size_t> own_pid;
};

// With `gpu`, what NVIDIA's driver library needs besides: any ioctl, locked
// memory, and UNIX sockets that nobody can be called with (no connect, no
// sendto).
absl::StatusOr<SyscallFilter> MakeSyscallFilter(bool gpu);

}  // namespace quantry
