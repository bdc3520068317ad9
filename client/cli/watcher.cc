#include "client/cli/watcher.h"

#include "client/cli/errors.h"
#include "client/cli/names.h"
#include "client/cli/text.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

// Without a terminal a line comes at least this often, so that a log shows life.
constexpr auto kLongestSilence = std::chrono::seconds(60);
constexpr int kLogColumns = 120;
// The deadline runs on another clock than TimedOut() and must not come first.
constexpr auto kClockSlack = std::chrono::milliseconds(50);

// The server ended the call before it stopped. An interrupt looks the same, and is seen there.
bool EndedThere(const absl::Status& status) {
  return absl::IsCancelled(status) && ReasonOf(status).empty();
}

// A server that answers with a limit is there, and says which.
std::string WhyAgain(const absl::Status& broken) {
  const bool full = absl::IsResourceExhausted(broken) && !ReasonOf(broken).empty();
  return Cat("quantry: ", full ? std::string(broken.message()) : "connection lost",
             full ? "; " : ", ", "trying again (the job is not affected)");
}

}  // namespace

Watcher::Watcher(Connection& connection, StatusLine& line, WatchLimits limits)
    : connection_(connection),
      line_(line),
      limits_(limits),
      start_(connection.env().ticks()),
      last_heard_(start_),
      last_said_(start_),
      backoff_(kFirstWait, kLongestWait) {}

bool Watcher::TimedOut() const {
  return limits_.wait && connection_.env().ticks() - start_ >= *limits_.wait;
}

bool Watcher::Interrupted() const {
  const Interrupter* interrupter = connection_.env().interrupter;
  return interrupter != nullptr && interrupter->fired() != 0;
}

void Watcher::Show(const v1::WatchQuantizationJobResponse& message) {
  const std::vector<std::string> lines = view_.Apply(message);
  if (line_.live()) {
    line_.Draw(ProgressLine(view_.job(), line_.columns()));
    return;
  }
  const std::string prefix = Cat(ShortId(view_.job().name()), ": ");
  for (const std::string& line : lines) Say(prefix + line);
  const bool silent = connection_.env().ticks() - last_said_ >= kLongestSilence;
  if (silent && !view_.job().name().empty()) Say(ProgressLine(view_.job(), kLogColumns));
}

void Watcher::Say(const std::string& line) {
  line_.Say(line);
  last_said_ = connection_.env().ticks();
}

absl::Status Watcher::Stream(const std::string& job_name, bool* heard) {
  grpc::ClientContext context;
  connection_.AddMetadata(context);
  if (limits_.wait) {
    context.set_deadline(std::chrono::system_clock::now() +
                         (*limits_.wait - (connection_.env().ticks() - start_)) + kClockSlack);
  }
  const Interrupter::Guard guard(connection_.env().interrupter,
                                 [&context] { context.TryCancel(); });
  v1::WatchQuantizationJobRequest request;
  request.set_name(job_name);
  request.set_after_sequence(view_.last_sequence());
  const auto reader = connection_.jobs().WatchQuantizationJob(&context, request);
  v1::WatchQuantizationJobResponse message;
  while (reader->Read(&message)) {
    *heard = true;
    if (said_lost_) line_.Say("quantry: connected again");
    said_lost_ = false;
    Show(message);
  }
  return connection_.Explain(reader->Finish());
}

absl::Status Watcher::AfterBreak(const absl::Status& broken, bool heard) {
  Environment& env = connection_.env();
  if (heard) {
    last_heard_ = env.ticks();
    backoff_.Reset();
  }
  if (HasReason(broken, Reason::kEventsCompacted)) {
    view_.Restart();
    return absl::OkStatus();
  }
  if (broken.ok() && heard) {  // the server cut a long stream: go on at once
    env.sleep(kFirstWait);
    return absl::OkStatus();
  }
  if (!broken.ok() && !IsBreak(broken) && !EndedThere(broken)) return broken;
  if (env.ticks() - last_heard_ >= limits_.away) {
    return broken.ok() ? absl::UnavailableError("the watch stream keeps ending without news")
                       : broken;
  }
  if (!said_lost_) line_.Say(WhyAgain(broken));
  said_lost_ = true;
  env.sleep(backoff_.Next(env.random()));
  connection_.Refresh(broken);
  return absl::OkStatus();
}

absl::StatusOr<WaitEnd> Watcher::Follow(const std::string& job_name) {
  while (true) {
    bool heard = false;
    const absl::Status status = Stream(job_name, &heard);
    if (view_.ended()) return WaitEnd::kEnded;
    if (Interrupted()) return WaitEnd::kInterrupted;
    if (TimedOut()) return WaitEnd::kTimedOut;
    if (absl::Status stop = AfterBreak(status, heard); !stop.ok()) return stop;
  }
}

}  // namespace quantry::cli
