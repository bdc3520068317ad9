#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/sandbox/sandbox.h"

namespace quantry {

// How a child is started. No shell is involved: argv goes to execve as it is.
struct ChildOptions {
  // argv[0] is the program's path; without a slash it is looked up in PATH.
  std::vector<std::string> argv;
  // "NAME=value" entries: the child's whole environment. See CleanEnvironment.
  std::vector<std::string> environment;
  // Empty = the parent's.
  std::string working_directory{};
  // false: the child writes where the parent writes.
  bool capture_stdout = true;
  bool capture_stderr = true;
  // Sent to the child when the THREAD that called Spawn ends, so that thread
  // must outlive the child. 0 = the child survives its parent.
  int parent_death_signal = SIGKILL;
  // (RLIMIT_*, value) pairs, set as soft and hard limit.
  std::vector<std::pair<int, std::uint64_t>> limits{};
  // Outlives the call; nullptr = the child may do what the parent may.
  const Sandbox* sandbox = nullptr;
};

// Exactly one of both is meaningful: signal != 0 means killed by it.
struct ExitStatus {
  int code = 0;
  int signal = 0;
  bool ok() const { return code == 0 && signal == 0; }
};

// One running child in a process group of its own. Owns the pipes and the
// zombie. The child inherits stdin from /dev/null and no other descriptor.
// Not thread-safe, except that SignalGroup may be called from any thread
// before Wait or Terminate has returned a status. Destruction kills the whole
// group with SIGKILL and reaps: nothing is left behind.
class ChildProcess {
 public:
  // NOT_FOUND / PERMISSION_DENIED when the program cannot be executed, the
  // folder not entered or the sandbox not set up (the message says which),
  // RESOURCE_EXHAUSTED when the system has no processes or descriptors left.
  static absl::StatusOr<ChildProcess> Spawn(const ChildOptions& options);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  // What the sandbox could do; meaningless without one.
  const SandboxReport& sandbox_report() const { return sandbox_report_; }
  // Read ends, non-blocking; -1 when not captured. Owned by this object.
  int stdout_fd() const { return stdout_fd_; }
  int stderr_fd() const { return stderr_fd_; }
  // Readable for poll(2) once the child has ended.
  int exit_fd() const { return pid_fd_; }

  void SignalGroup(int signal) const;

  // Waits at most `timeout` for the end; nullopt when it still runs. After the
  // end, members of the group that are left over are killed.
  std::optional<ExitStatus> Wait(std::chrono::milliseconds timeout);

  // SIGTERM to the group, SIGKILL after `grace`; returns when it is gone.
  ExitStatus Terminate(std::chrono::milliseconds grace);

 private:
  ChildProcess() = default;
  void Close();

  pid_t pid_ = -1;
  int pid_fd_ = -1;
  int stdout_fd_ = -1;
  int stderr_fd_ = -1;
  std::optional<ExitStatus> exit_;
  SandboxReport sandbox_report_;
};

// `name` as ChildOptions.argv[0] is understood: itself, or where PATH has it.
std::string FindProgram(const std::string& name);

// The parent's environment reduced to the variables named in `keep`; an entry
// that ends in '*' keeps every name with that prefix. Credentials stay out
// because they are never named.
std::vector<std::string> CleanEnvironment(std::span<const std::string_view> keep);

}  // namespace quantry
