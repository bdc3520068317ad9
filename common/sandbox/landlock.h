// Which files a process may still open: Landlock, Linux 5.13 and later. Rules
// name files and folders (with everything below); the rest is EACCES. Where
// the kernel knows them, TCP, other processes' abstract sockets and signals to
// processes outside are denied too.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace quantry {

class LandlockRules {
 public:
  enum class Access { kRead, kExecute, kDevice, kWrite };

  // What this kernel knows, and lets this process use; 0 = nothing.
  static int Abi();

  static absl::StatusOr<LandlockRules> Create();

  // kRead: read files, list folders. kExecute: that, and start programs.
  // kDevice: read, write and ioctl what exists. kWrite: everything but devices,
  // symbolic links and starting programs. A path that does not exist is no
  // error: it cannot be opened anyway.
  absl::Status Allow(const std::string& path, Access access);
  absl::Status Allow(const UniqueFd& target, Access access);  // a file or folder, by O_PATH

  // For the child, async-signal-safe. AllowSelf lets it read its own /proc
  // entry, and with `threads` write those of its threads, as naming another one does;
  // Enforce holds from then on, for its threads and programs. Both want
  // no_new_privs and answer false with errno.
  bool AllowSelf(bool threads) const;
  bool Enforce() const;

 private:
  explicit LandlockRules(int fd, std::uint64_t handled) : fd_(fd), handled_(handled) {}
  bool AddRule(const char* path, std::uint64_t access) const;
  bool AddRule(int target, std::uint64_t access) const;

  UniqueFd fd_;
  std::uint64_t handled_;
};

}  // namespace quantry
