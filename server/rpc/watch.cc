#include "server/rpc/watch.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "server/rpc/convert.h"
#include "server/rpc/stepped_call.h"

namespace quantry::server {
namespace {

using WatchMessage = v1::WatchQuantizationJobResponse;
using std::chrono::steady_clock;

constexpr std::string_view kMethod = "/quantry.v1.QuantizationService/WatchQuantizationJob";
// All watches together look for themselves at most once in this time.
constexpr auto kPollOfEach = std::chrono::milliseconds(2);
constexpr auto kSlowestPoll = std::chrono::seconds(10);
constexpr auto kLongestInterval = std::chrono::hours(24);  // longer ones would overflow

Duration IntervalOf(const v1::WatchQuantizationJobRequest& request) {
  const Duration wanted = FromProto(request.min_interval());  // 0 where there is none
  if (wanted == Duration(0)) return kDefaultWatchInterval;
  return std::min<Duration>(wanted, kLongestInterval);
}

class WatchReactor : public SteppedCall<grpc::ServerWriteReactor<WatchMessage>> {
 public:
  WatchReactor(const ServiceContext* context, grpc::CallbackServerContext* call,
               const v1::WatchQuantizationJobRequest& request)
      : SteppedCall(context, context->runtime->streams, kMethod, call, request),
        name_(request.name()),
        after_(request.after_sequence()),
        interval_(IntervalOf(request)) {
    context_->runtime->metrics->watch_streams.Increment();
    Start();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) Cancelled();
    writing_ = false;
    task_->Kick();
  }

 private:
  void Step() override {
    if (writing_) return;  // OnWriteDone kicks again
    if (ended_ && !cancelled()) return End(absl::OkStatus());
    absl::Status status = Interrupted();
    if (status.ok() && WaitsForStore()) return;
    if (status.ok()) status = started_ ? Continue() : Begin();
    if (status.ok()) {
      failed_at_.reset();
    } else if (!TriesAgain(status)) {
      End(status);
    }
  }

  // A store that does not answer is asked once more, by one for all who watch
  // the job; then the caller is told, and may find a server that is answered.
  bool TriesAgain(const absl::Status& status) {
    if (failed_at_ || !HasReason(status, Reason::kStoreUnavailable)) return false;
    failed_at_ = steady_clock::now();
    WakeAt(*failed_at_ + SharedJob::kFailureStands);
    return true;
  }

  // Woken before it is time to try again.
  bool WaitsForStore() {
    if (!failed_at_ || steady_clock::now() >= *failed_at_ + SharedJob::kFailureStands) return false;
    WakeAt(*failed_at_ + SharedJob::kFailureStands);
    return true;
  }

  void OnEnd() override {
    context_->runtime->metrics->watch_streams.Decrement();
    place_.GiveBack();
    if (counted_for_tenant_) context_->runtime->tenant_watches.Remove(key_.tenant);
  }

  absl::Status Subscribe() {
    const absl::Status counted =
        place_.Take(call_.principal(), {.most = kWatchesOfOne,
                                        .what = "watches open",
                                        .advice = "end some, or list events instead",
                                        .retry_after = std::chrono::seconds(10)});
    if (!counted.ok()) return counted;
    auto parsed = ParseJobName(name_);
    if (!parsed.ok()) return parsed.status();
    if (after_ < 0 || interval_ < Duration::zero()) {
      return MakeError(Reason::kInvalidArgument,
                       "after_sequence, min_interval: wanted 0 or more, got less");
    }
    key_ = {parsed->tenant, parsed->id};
    shared_ = context_->runtime->watched_jobs.Of(context_->store, context_->clock, key_);
    subscription_ = context_->hub->OnJobChanged(key_, [this] {
      changed_ = steady_clock::now();
      task_->Kick();
    });
    return absl::OkStatus();
  }

  absl::Status Begin() {
    // Subscribed before the first read: a change in between kicks again.
    if (shared_ == nullptr) {
      if (absl::Status status = Subscribe(); !status.ok()) return status;
    }
    // The job first: that read is shared when the store does not answer.
    const auto read = shared_->Get(failed_at_.value_or(steady_clock::now()));
    if (!read.ok()) return read.status();
    if (absl::Status status = CountForTenant(); !status.ok()) return status;
    const Job* job = read->get();
    if (after_ > job->last_sequence) {
      return MakeError(Reason::kEventsCompacted,
                       absl::StrCat("after_sequence ", after_, " is beyond the job's last, ",
                                    job->last_sequence, "; watch again without it"),
                       {{"last_sequence", absl::StrCat(job->last_sequence)}});
    }
    started_ = true;
    uid_ = job->uid;
    sent_sequence_ = after_ == 0 ? job->last_sequence : after_;
    sent_progress_ = job->progress.SerializeAsString();
    sent_progress_time_ = steady_clock::now();
    WatchMessage message;
    *message.mutable_snapshot() = ToProto(*job);
    Send(std::move(message), "snapshot");
    return absl::OkStatus();
  }

  absl::Status CountForTenant() {
    const auto quota = context_->store->Quota(key_.tenant);
    if (!quota.ok()) return quota.status();
    const std::int64_t limit =
        quota->max_watches == 0 ? std::numeric_limits<std::int64_t>::max() : quota->max_watches;
    counted_for_tenant_ = context_->runtime->tenant_watches.Add(key_.tenant, limit);
    if (counted_for_tenant_) return absl::OkStatus();
    const std::string name = FormatTenantName(key_.tenant);
    return MakeDetailedError(
        Reason::kQuotaWatches,
        absl::StrCat(name, " may have ", limit,
                     " watches open at this server and has that many; end some, or list events "
                     "instead"),
        {.metadata = {{"tenant", name}, {"max_watches", absl::StrCat(limit)}},
         .quotas = {{name, absl::StrCat("max_watches ", limit)}},
         .retry_after = std::chrono::seconds(10)});
  }

  // Sends the next thing there is, or arranges to be woken.
  absl::Status Continue() {
    if (events_.empty()) {
      const auto read = shared_->Get(LookedAtSince());
      if (!read.ok()) return read.status();
      const Job* job = read->get();
      if (job->uid != uid_) return AnotherJob();
      if (job->last_sequence > sent_sequence_) {
        if (absl::Status status = ReadEvents(job->last_sequence); !status.ok()) return status;
      } else if (IsEnded(job->state)) {
        WatchMessage message;
        *message.mutable_end()->mutable_job() = ToProto(*job);
        ended_ = true;
        Send(std::move(message), "end");
        return absl::OkStatus();
      } else {
        return SendProgressOrWait(*job);
      }
    }
    if (events_.empty()) return absl::OkStatus();
    WatchMessage message;
    *message.mutable_event() = std::move(events_.front());
    events_.pop_front();
    sent_sequence_ = message.event().sequence();
    Send(std::move(message), "event");
    return absl::OkStatus();
  }

  // What was read earlier may lack what this stream was woken for.
  MonotonicTime LookedAtSince() const {
    const MonotonicTime changed = changed_;
    if (failed_at_) return std::max(*failed_at_, changed);
    return wake_at_ <= steady_clock::now() ? std::max(wake_at_, changed) : changed;
  }

  absl::Status AnotherJob() const {
    return MakeError(Reason::kJobNotFound,
                     absl::StrCat(name_, " was deleted; another job has its name now"));
  }

  absl::Status ReadEvents(std::int64_t last) {
    const auto read = shared_->Events(uid_, sent_sequence_, last, kWatchBatch);
    if (!read.ok()) return read.status();
    if ((*read)->uid != uid_) return AnotherJob();
    const std::vector<v1::JobEvent>& events = (*read)->events;
    if (!events.empty() && events.front().sequence() != sent_sequence_ + 1) {
      return MakeError(Reason::kEventsCompacted,
                       absl::StrCat("the events after sequence ", sent_sequence_,
                                    " are gone; watch again without after_sequence"));
    }
    events_.assign(events.begin(), events.end());
    return absl::OkStatus();
  }

  absl::Status SendProgressOrWait(const Job& job) {
    const auto now = steady_clock::now();
    std::string progress = job.progress.SerializeAsString();
    auto wake = now + Poll();
    if (progress != sent_progress_) {
      const auto due = sent_progress_time_ + interval_;
      if (now >= due) {
        WatchMessage message;
        *message.mutable_progress() = job.progress;
        sent_progress_ = std::move(progress);
        sent_progress_time_ = now;
        waiting_progress_.clear();
        Send(std::move(message), "progress");
        return absl::OkStatus();
      }
      if (!waiting_progress_.empty() && waiting_progress_ != progress) {
        context_->runtime->metrics->watch_events_conflated.Increment();
      }
      waiting_progress_ = std::move(progress);
      wake = std::min(wake, due);
    }
    if (now >= last_write_ + kWatchKeepalive) {
      WatchMessage message;
      *message.mutable_keepalive()->mutable_time() = ToProto(context_->clock->Now());
      Send(std::move(message), "keepalive");
      return absl::OkStatus();
    }
    wake_at_ = std::min(wake, last_write_ + kWatchKeepalive);
    WakeAt(wake_at_);
    return absl::OkStatus();
  }

  // Many streams must not keep the store busy by looking.
  Duration Poll() const {
    const auto streams = static_cast<int64_t>(context_->runtime->metrics->watch_streams.Value());
    return std::min<Duration>(std::max<Duration>(context_->watch_poll, streams * kPollOfEach),
                              kSlowestPoll);
  }

  void Send(WatchMessage message, const std::string& kind) {
    message_ = std::move(message);
    last_write_ = steady_clock::now();
    context_->runtime->metrics->watch_events_sent.With({kind}).Increment();
    writing_ = true;
    StartWrite(&message_);
  }

  const std::string name_;
  const std::int64_t after_;
  const Duration interval_;

  std::atomic<bool> writing_{false};
  std::atomic<MonotonicTime> changed_{MonotonicTime::min()};  // told so by the hub

  // The step's own.
  JobKey key_;
  std::shared_ptr<SharedJob> shared_;
  MonotonicTime wake_at_ = MonotonicTime::max();
  std::optional<MonotonicTime> failed_at_;  // when the store did not answer
  CountedPlace place_{&context_->runtime->watches};
  bool counted_for_tenant_ = false;  // among those of the job's tenant
  bool started_ = false;
  bool ended_ = false;
  std::string uid_;  // of the job: its name may become another one's
  std::int64_t sent_sequence_ = 0;
  std::deque<v1::JobEvent> events_;
  std::string sent_progress_;     // serialized, as last sent
  std::string waiting_progress_;  // seen but not due yet
  MonotonicTime sent_progress_time_{};
  MonotonicTime last_write_{};
  WatchMessage message_;  // being written
};

}  // namespace

grpc::ServerWriteReactor<WatchMessage>* StartWatch(const ServiceContext* context,
                                                   grpc::CallbackServerContext* call,
                                                   const v1::WatchQuantizationJobRequest& request) {
  return new WatchReactor(context, call, request);
}

}  // namespace quantry::server
