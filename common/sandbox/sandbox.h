// What a child process may do once it reads files nobody vouches for. Made by
// the parent with everything the child needs, because between fork and exec of
// a process with threads only async-signal-safe calls are allowed.
//
// Always: no_new_privs, a seccomp filter (syscall_filter.h), no capabilities,
// no core dumps, limits on descriptors and file size. Where kernel and
// privileges allow it: Landlock (landlock.h), a network namespace of its own,
// another account.
#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/sandbox/identity.h"
#include "common/sandbox/landlock.h"
#include "common/sandbox/syscall_filter.h"

namespace quantry {

struct SandboxOptions {
  std::string program;               // absolute path of an ELF program
  std::vector<std::string> read;     // files, and folders with all below
  std::vector<std::string> within;   // see Sandbox::Prepare; empty = anywhere
  std::vector<std::string> write;    // folders that exist
  bool gpu = false;                  // NVIDIA devices and what their driver calls
  std::optional<Identity> identity;  // needs root
  std::uint64_t max_file_bytes = 0;  // 0 = no limit; beyond it write(2) says EFBIG
};

// What came true in a child.
struct SandboxReport {
  int landlock_abi = 0;  // 0 = every file its account may open is open to it
  bool network_namespace = false;
  bool own_account = false;
  std::string Text() const;  // "seccomp, landlock 7, network namespace"
};

// Immutable but for the child's copy. Any number of children may be made of one.
class Sandbox {
 public:
  // What `read` names, and the files that links among its folders' entries lead
  // to, may be read if it lies in a folder of `within`: in truth, and as it is
  // opened here for the rules, so that no link made meanwhile leads elsewhere. The
  // rest is closed to the child. Needs Landlock.
  //
  // NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT as ReadProgramFiles;
  // INTERNAL when the kernel refuses.
  static absl::StatusOr<Sandbox> Prepare(const SandboxOptions& options);

  // The child's part, async-signal-safe; false with errno. DropPrivileges
  // changes credentials, which clears a parent-death signal set before it.
  // Lock comes last: after it only descriptors and execve are left.
  bool DropPrivileges(SandboxReport* report) const;
  bool Lock(SandboxReport* report) const;

 private:
  Sandbox() = default;
  absl::Status AllowFiles(const SandboxOptions& options);
  bool LeaveNetwork() const;
  bool SwitchAccount() const;

  SyscallFilter filter_;
  bool gpu_ = false;
  std::optional<LandlockRules> landlock_;
  int landlock_abi_ = 0;
  std::optional<Identity> identity_;
  std::vector<std::pair<int, rlimit>> limits_;
  rlimit descriptors_{};
  // For /proc/self/{uid_map,gid_map} of a user namespace: the same numbers.
  std::string uid_map_;
  std::string gid_map_;
};

}  // namespace quantry
