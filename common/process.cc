#include "common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace quantry {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Pipe {
  int read = -1;
  int write = -1;
  ~Pipe() {
    CloseRead();
    CloseWrite();
  }
  bool Open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read = ends[0];
    write = ends[1];
    return true;
  }
  void CloseRead() { CloseFd(read); }
  void CloseWrite() { CloseFd(write); }
  static void CloseFd(int& fd) {
    if (fd >= 0) close(fd);
    fd = -1;
  }
};

absl::Status SystemStatus(int error, const std::string& what) {
  const std::string message = what + ": " + std::strerror(error);
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(message);
    case EAGAIN:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

// Everything the child needs between fork and exec, prepared beforehand: only
// async-signal-safe calls are allowed there.
struct ExecPlan {
  std::vector<char*> argv;
  std::vector<char*> environment;
  std::string program;
  const char* working_directory = nullptr;
  int null_fd = -1;
  int out_fd = -1;
  int err_fd = -1;
  int error_fd = -1;
  int death_signal = 0;
  pid_t parent = 0;
  const std::vector<std::pair<int, std::uint64_t>>* limits = nullptr;
  const Sandbox* sandbox = nullptr;
};

// What the child does before the program takes over, for messages.
enum class Step { kDescriptors, kLimits, kFolder, kPrivileges, kLock, kExecute };
constexpr const char* kStepNames[] = {
    "set up the descriptors of", "limit",   "enter the working folder of",
    "drop the privileges of",    "confine", "execute"};

// Through the error pipe: once before execve, with error 0, and for a failure.
struct ChildMessage {
  Step step = Step::kExecute;
  int error = 0;
  SandboxReport report;
};
static_assert(std::is_trivially_copyable_v<ChildMessage>);

void Tell(const ExecPlan& plan, const ChildMessage& message) {
  [[maybe_unused]] const ssize_t n = write(plan.error_fd, &message, sizeof(message));
}

[[noreturn]] void FailChild(const ExecPlan& plan, Step step) {
  Tell(plan, {.step = step, .error = errno, .report = {}});
  _exit(127);
}

void ResetSignals() {
  sigset_t none;
  sigemptyset(&none);
  for (int number = 1; number < NSIG; ++number) {
    if (number != SIGKILL && number != SIGSTOP) signal(number, SIG_DFL);
  }
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

void MoveDescriptors(const ExecPlan& plan) {
  // error_fd is moved out of the way of 0..2, then everything above it closed.
  const int error_fd = 3;
  if (dup2(plan.null_fd, 0) < 0 || (plan.out_fd >= 0 && dup2(plan.out_fd, 1) < 0) ||
      (plan.err_fd >= 0 && dup2(plan.err_fd, 2) < 0) ||
      (plan.error_fd != error_fd && dup3(plan.error_fd, error_fd, O_CLOEXEC) < 0)) {
    FailChild(plan, Step::kDescriptors);
  }
  syscall(SYS_close_range, error_fd + 1, ~0U, 0);
}

[[noreturn]] void RunChild(ExecPlan plan) {
  setpgid(0, 0);
  ResetSignals();
  for (const auto& [resource, value] : *plan.limits) {
    const rlimit limit{value, value};
    if (setrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) {
      FailChild(plan, Step::kLimits);
    }
  }
  if (plan.working_directory != nullptr && chdir(plan.working_directory) != 0) {
    FailChild(plan, Step::kFolder);
  }
  ChildMessage started;
  if (plan.sandbox != nullptr && !plan.sandbox->DropPrivileges(&started.report)) {
    FailChild(plan, Step::kPrivileges);
  }
  if (plan.death_signal != 0) {
    prctl(PR_SET_PDEATHSIG, plan.death_signal);
    if (getppid() != plan.parent) _exit(127);  // the parent went before prctl
  }
  if (plan.sandbox != nullptr && !plan.sandbox->Lock(&started.report)) {
    FailChild(plan, Step::kLock);
  }
  MoveDescriptors(plan);
  plan.error_fd = 3;
  Tell(plan, started);
  execve(plan.program.c_str(), plan.argv.data(), plan.environment.data());
  FailChild(plan, Step::kExecute);
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// The child's last word: error 0 once it runs the new program.
ChildMessage ReadLastMessage(int fd) {
  ChildMessage last, next;
  while (true) {
    const ssize_t n = read(fd, &next, sizeof(next));
    if (n < 0 && errno == EINTR) continue;
    if (n != sizeof(next)) return last;
    last = next;
  }
}

// A descriptor above the standard ones, so that dup2 onto 0..3 is safe.
bool LiftAbove(int& fd) {
  if (fd > 9) return true;
  const int lifted = fcntl(fd, F_DUPFD_CLOEXEC, 10);
  if (lifted < 0) return false;
  close(fd);
  fd = lifted;
  return true;
}

ExitStatus FromWaitStatus(int status) {
  if (WIFSIGNALED(status)) return {.code = 0, .signal = WTERMSIG(status)};
  return {.code = WEXITSTATUS(status), .signal = 0};
}

}  // namespace

absl::StatusOr<ChildProcess> ChildProcess::Spawn(const ChildOptions& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("no program to start");
  Pipe out, err, error, null;
  null.read = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null.read < 0 || !error.Open() || (options.capture_stdout && !out.Open()) ||
      (options.capture_stderr && !err.Open()) || !LiftAbove(null.read) || !LiftAbove(error.write) ||
      (out.write >= 0 && !LiftAbove(out.write)) || (err.write >= 0 && !LiftAbove(err.write))) {
    return SystemStatus(errno, "cannot open pipes for " + options.argv[0]);
  }
  ExecPlan plan{.argv = Pointers(options.argv),
                .environment = Pointers(options.environment),
                .program = FindProgram(options.argv[0]),
                .null_fd = null.read,
                .out_fd = out.write,
                .err_fd = err.write,
                .error_fd = error.write,
                .death_signal = options.parent_death_signal,
                .parent = getpid(),
                .limits = &options.limits,
                .sandbox = options.sandbox};
  if (!options.working_directory.empty()) {
    plan.working_directory = options.working_directory.c_str();
  }
  // _Fork skips the atfork handlers of libraries: the child only execs.
  const pid_t pid = _Fork();
  if (pid == 0) RunChild(std::move(plan));
  if (pid < 0) return SystemStatus(errno, "cannot start " + plan.program);
  setpgid(pid, pid);  // also here, so that SignalGroup works at once
  error.CloseWrite();

  ChildProcess child;
  child.pid_ = pid;
  child.pid_fd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (child.pid_fd_ < 0) return SystemStatus(errno, "pidfd_open for " + plan.program);
  const ChildMessage last = ReadLastMessage(error.read);
  if (last.error != 0) {
    return SystemStatus(
        last.error,
        std::string("cannot ") + kStepNames[static_cast<int>(last.step)] + " " + plan.program);
  }
  child.sandbox_report_ = last.report;
  for (Pipe* pipe : {&out, &err}) {
    if (pipe->read >= 0) fcntl(pipe->read, F_SETFL, O_NONBLOCK);
  }
  child.stdout_fd_ = std::exchange(out.read, -1);
  child.stderr_fd_ = std::exchange(err.read, -1);
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept { *this = std::move(other); }

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  Close();
  pid_ = std::exchange(other.pid_, -1);
  pid_fd_ = std::exchange(other.pid_fd_, -1);
  stdout_fd_ = std::exchange(other.stdout_fd_, -1);
  stderr_fd_ = std::exchange(other.stderr_fd_, -1);
  exit_ = std::exchange(other.exit_, std::nullopt);
  sandbox_report_ = other.sandbox_report_;
  return *this;
}

ChildProcess::~ChildProcess() { Close(); }

void ChildProcess::Close() {
  if (pid_ > 0 && !exit_) {
    SignalGroup(SIGKILL);
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
  }
  for (int* fd : {&pid_fd_, &stdout_fd_, &stderr_fd_}) Pipe::CloseFd(*fd);
  pid_ = -1;
  exit_.reset();
}

void ChildProcess::SignalGroup(int signal) const {
  if (pid_ > 0) kill(-pid_, signal);
}

std::optional<ExitStatus> ChildProcess::Wait(milliseconds timeout) {
  if (exit_) return exit_;
  const auto deadline = steady_clock::now() + timeout;
  pollfd wait{.fd = pid_fd_, .events = POLLIN, .revents = 0};
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
    const int n = poll(&wait, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (n > 0) break;
    if (n == 0) return std::nullopt;
    if (errno != EINTR) return std::nullopt;
  }
  // The zombie still holds the group's number, so this hits only our group.
  SignalGroup(SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  exit_ = FromWaitStatus(status);
  return exit_;
}

ExitStatus ChildProcess::Terminate(milliseconds grace) {
  if (!exit_) SignalGroup(SIGTERM);
  if (const auto status = Wait(grace)) return *status;
  SignalGroup(SIGKILL);
  std::optional<ExitStatus> status;
  while (!(status = Wait(std::chrono::hours(1)))) {
  }
  return *status;
}

std::string FindProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const char* path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "/usr/bin:/bin" : path;
  while (!rest.empty()) {
    const std::size_t colon = std::min(rest.find(':'), rest.size());
    const std::string candidate = std::string(rest.substr(0, colon)) + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return name;
}

std::vector<std::string> CleanEnvironment(std::span<const std::string_view> keep) {
  std::vector<std::string> kept;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string_view name = text.substr(0, text.find('='));
    const bool wanted = std::any_of(keep.begin(), keep.end(), [&](std::string_view pattern) {
      if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
      return name == pattern;
    });
    if (wanted) kept.emplace_back(text);
  }
  return kept;
}

}  // namespace quantry
