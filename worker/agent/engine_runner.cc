#include "worker/agent/engine_runner.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <fstream>
#include <sstream>

#include "common/errors.h"
#include "common/line_reader.h"
#include "common/log.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;

// A block's event is a few hundred bytes; an error message may be long.
constexpr std::size_t kMaxEventBytes = 1 << 20;
constexpr std::size_t kMaxStderrLine = 16 << 10;
constexpr std::size_t kLogTailBytes = 16 << 10;
constexpr milliseconds kPollInterval{100};
constexpr std::chrono::seconds kProbeTime{60};     // its libraries may come from a cold disk
constexpr std::chrono::seconds kDevicesTime{180};  // every GPU may take seconds to start
constexpr int kReadsBetweenLooks = 4;              // at the orders: an engine may flood its pipe
constexpr int kMaxGarbageLogged = 5;

// The state of one run.
class EngineRun {
 public:
  EngineRun(ChildProcess child, const EngineOptions& options, const JobSession& session,
            const EngineSink& sink)
      : child_(std::move(child)),
        options_(options),
        session_(session),
        sink_(sink),
        stdout_(child_.stdout_fd(), kMaxEventBytes),
        stderr_(child_.stderr_fd(), kMaxStderrLine) {}

  EngineOutcome Watch();

 private:
  bool MustStop() const;
  void Read(int max_reads);
  void OnLine(std::string_view line, bool cut);
  void OnLog(std::string_view line);
  EngineOutcome Stop();
  EngineOutcome Finish(ExitStatus status);

  ChildProcess child_;
  const EngineOptions& options_;
  const JobSession& session_;
  const EngineSink& sink_;
  LineReader stdout_;
  LineReader stderr_;
  bool stdout_open_ = true;
  bool stderr_open_ = true;
  bool at_checkpoint_ = false;
  int garbage_ = 0;
  std::int64_t oom_before_ = OomKillCount();
  std::optional<v1::EngineCompleted> completed_;
  std::optional<v1::EngineError> error_;
  std::string log_tail_;
};

void EngineRun::OnLine(std::string_view line, bool cut) {
  if (line.empty()) return;
  auto event = cut ? absl::InvalidArgumentError("line too long") : ParseEngineEvent(line);
  if (!event.ok()) {
    if (++garbage_ <= kMaxGarbageLogged) {
      log::Warning("the engine wrote something that is no event",
                   {{"job", session_.job()},
                    {"epoch", session_.epoch()},
                    {"line", line.substr(0, 200)},
                    {"error", std::string(event.status().message())}});
    }
    return;
  }
  if (event->has_completed()) completed_ = event->completed();
  if (event->has_error()) error_ = event->error();
  sink_(*event);
  if (event->has_checkpoint() &&
      session_.stop_reason(std::chrono::steady_clock::now()) == StopReason::kRelease) {
    at_checkpoint_ = true;
  }
}

void EngineRun::OnLog(std::string_view line) {
  log_tail_.append(line).push_back('\n');
  if (log_tail_.size() > kLogTailBytes) log_tail_.erase(0, log_tail_.size() - kLogTailBytes);
}

bool EngineRun::MustStop() const {
  const StopReason reason = session_.stop_reason(std::chrono::steady_clock::now());
  return reason > StopReason::kRelease || at_checkpoint_;
}

void EngineRun::Read(int max_reads) {
  if (stdout_open_) {
    stdout_open_ =
        stdout_.Drain([this](std::string_view line, bool cut) { OnLine(line, cut); }, max_reads);
  }
  if (stderr_open_) {
    stderr_open_ = stderr_.Drain([this](std::string_view line, bool) { OnLog(line); }, max_reads);
  }
}

EngineOutcome EngineRun::Watch() {
  while (true) {
    if (MustStop()) return Stop();
    std::array<pollfd, 3> waits{{
        {.fd = stdout_open_ ? child_.stdout_fd() : -1, .events = POLLIN, .revents = 0},
        {.fd = stderr_open_ ? child_.stderr_fd() : -1, .events = POLLIN, .revents = 0},
        {.fd = child_.exit_fd(), .events = POLLIN, .revents = 0},
    }};
    poll(waits.data(), waits.size(), static_cast<int>(kPollInterval.count()));
    Read(kReadsBetweenLooks);
    if (waits[2].revents != 0) {
      if (const auto status = child_.Wait(milliseconds(0))) return Finish(*status);
    }
  }
}

EngineOutcome EngineRun::Stop() {
  const bool lost = session_.stop_reason(std::chrono::steady_clock::now()) == StopReason::kLost;
  const ExitStatus status = child_.Terminate(lost ? milliseconds(0) : options_.kill_grace);
  Read(LineReader::kWholePipe);
  return {.kind = EngineOutcome::Kind::kStopped,
          .completed = {},
          .error = {},
          .exit_code = status.code,
          .exit_signal = status.signal,
          .log_tail = std::move(log_tail_)};
}

EngineOutcome EngineRun::Finish(ExitStatus status) {
  Read(LineReader::kWholePipe);  // what was still in the pipes
  EngineOutcome outcome{.kind = EngineOutcome::Kind::kFailed,
                        .completed = {},
                        .error = {},
                        .exit_code = status.code,
                        .exit_signal = status.signal,
                        .log_tail = std::move(log_tail_)};
  if (status.ok() && completed_) {
    outcome.kind = EngineOutcome::Kind::kCompleted;
    outcome.completed = *completed_;
  } else if (error_) {
    outcome.error = *error_;
  } else {
    const bool oom = OomKillCount() > oom_before_;
    outcome.error = ClassifyExit(status.code, status.signal, oom, outcome.log_tail);
  }
  return outcome;
}

// The whole output of a short command.
absl::StatusOr<std::string> Capture(const std::vector<std::string>& argv,
                                    const EngineConfinement& confinement, std::string* held,
                                    const EngineAccess& access = {},
                                    std::chrono::seconds time = kProbeTime) {
  ChildOptions options{.argv = argv, .environment = {}};
  options.capture_stderr = false;
  auto child = SpawnEngine(options, confinement, access);
  if (!child.ok()) return child.status();
  *held = DescribeConfinement(confinement, *child);
  std::string output;
  LineReader reader(child->stdout_fd(), kMaxEventBytes);
  pollfd wait{.fd = child->stdout_fd(), .events = POLLIN, .revents = 0};
  const auto sink = [&](std::string_view line, bool) { output.append(line).push_back('\n'); };
  const auto deadline = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < deadline && output.size() < kMaxEventBytes) {
    if (poll(&wait, 1, 1000) > 0 && !reader.Drain(sink)) break;
  }
  const auto status = child->Wait(std::chrono::seconds(5));
  const std::string command = argv[0] + " " + argv[1];
  if (!status) {
    return absl::DeadlineExceededError(command + " did not end within " +
                                       std::to_string(time.count()) +
                                       " s: is the disk of its libraries slow, or the machine "
                                       "overloaded?");
  }
  if (!status->ok()) {
    return absl::UnavailableError(command + " ended with exit status " +
                                  std::to_string(status->code) + ", signal " +
                                  std::to_string(status->signal));
  }
  return output;
}

std::string_view Trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  return text;
}

}  // namespace

EngineOutcome EngineRunner::Run(const std::string& job_file, const std::string& folder,
                                const EngineAccess& access, const JobSession& session,
                                const EngineSink& sink) const {
  ChildOptions options{.argv = {options_.binary, "run", "--job", job_file},
                       .environment = {},
                       .working_directory = folder};
  auto child = SpawnEngine(options, options_.confinement, access);
  if (!child.ok()) {
    EngineOutcome outcome;
    outcome.error.set_failure_class(v1::FAILURE_CLASS_ENVIRONMENT);
    outcome.error.set_reason(std::string(ReasonName(Reason::kEngineCrashed)));
    outcome.error.set_message(std::string(child.status().message()) +
                              "; check the worker's engine_binary");
    return outcome;
  }
  return EngineRun(std::move(*child), options_, session, sink).Watch();
}

std::int64_t OomKillCount() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    // v2: "0::/path"; v1: "4:memory:/path".
    std::string file;
    if (line.starts_with("0::")) file = "/sys/fs/cgroup" + line.substr(3) + "/memory.events";
    if (const auto at = line.find(":memory:"); at != std::string::npos) {
      file = "/sys/fs/cgroup/memory" + line.substr(at + 8) + "/memory.oom_control";
    }
    std::ifstream counts(file);
    std::string name;
    std::int64_t value = 0;
    while (counts >> name >> value) {
      if (name == "oom_kill") return value;
    }
  }
  return 0;
}

absl::StatusOr<EngineAbilities> ProbeEngine(const EngineOptions& options) {
  EngineAbilities abilities;
  const auto version =
      Capture({options.binary, "--version"}, options.confinement, &abilities.confinement);
  if (!version.ok()) return version.status();
  const auto methods =
      Capture({options.binary, "methods"}, options.confinement, &abilities.confinement);
  if (!methods.ok()) return methods.status();
  // "quantry-engine 0.1.0" or "0.1.0".
  const std::string_view text = Trim(*version);
  abilities.version = std::string(text.substr(text.rfind(' ') + 1));
  auto names = MethodNames(*methods);
  if (!names.ok()) return names.status();
  abilities.methods = *std::move(names);
  return abilities;
}

absl::Status ProbeDevice(const EngineOptions& options, const std::string& device) {
  if (!device.starts_with("cuda")) return absl::OkStatus();
  std::string confinement;
  EngineAccess access;
  access.gpu = true;
  const auto devices =
      Capture({options.binary, "devices"}, options.confinement, &confinement, access, kDevicesTime);
  return devices.ok() ? FindDevice(device, *devices) : devices.status();
}

}  // namespace quantry::agent
