#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "common/clock.h"
#include "quantry/v1/worker_service.pb.h"

namespace quantry::agent {

// Why an attempt has to stop; a higher value overrules a lower one.
enum class StopReason {
  kNone,
  kRelease,     // stop at the next committed checkpoint, give the job back
  kReleaseNow,  // give it back with what is committed
  kCancel,      // the tenant asked
  kLost,        // another epoch may run: touch nothing, say nothing
};

// One held lease: the events and the progress of the attempt on their way to
// the server, and the directives on their way back. Shared by the thread that
// runs the attempt, the uploader's thread and the heartbeat loop; thread-safe.
// Nothing survives a crash: the next attempt has a new epoch.
//
// Events keep their numbers until the server has confirmed them, so a beat
// whose answer got lost is repeated with the same event_offset.
//
// What an engine says is bounded here: the server leaves out what is not, and
// older servers refuse a whole heartbeat for it, of all jobs of the worker.
class JobSession {
 public:
  // `granted` is when the lease's answer came.
  JobSession(const v1::Lease& lease, MonotonicTime granted);

  const std::string& job() const { return job_; }
  const std::string& job_uid() const { return job_uid_; }
  std::int64_t epoch() const { return epoch_; }

  // Called (without locks held) whenever there is something to send.
  void SetWake(std::function<void()> wake);

  void EnterStage(v1::Stage stage);
  // Without its metrics where they are larger than kMaxEventBytes.
  void AddBlock(const v1::BlockReport& block);
  // Messages are cut at 4 KiB; after 1000 lines the rest is dropped.
  void AddLog(v1::LogLine::Level level, const std::string& message);
  // Takes over everything but stage, stage times, a ratio that would fall, and
  // metrics that are not finite, too many or have long names.
  void MergeProgress(const v1::JobProgress& progress);
  // Nothing but the commit is left: ratio 1, all steps done, no ETA.
  void MarkDone();
  void SetMetric(const std::string& name, double value);

  v1::Stage stage() const;
  v1::JobProgress progress() const;
  bool HasEvents() const;
  bool HasNews() const;  // events, or progress changed since the last beat

  // What to send now: at most kMaxEventsPerBeat events, of kMaxBeatBytes and of
  // the `room` that other jobs leave in the call.
  v1::JobBeat MakeBeat(std::size_t room = kMaxBeatBytes);
  // Events not yet confirmed, for the call that ends the attempt: the oldest, as
  // many as the server takes in one call. It refuses one with more.
  v1::JobBeat MakeLastBeat();
  // Whether MakeLastBeat() leaves some out: beats can go ahead of it.
  bool HasMoreThanLastBeat() const;
  // Events not yet confirmed, for calls that go beside the beats: at most
  // kMaxEventsPerBeat, of kMaxBeatBytes. Only event_offset and events are set.
  v1::JobBeat PendingEvents() const;
  // The answer to a beat sent at `sent`.
  void OnAnswer(const v1::JobDirective& directive, MonotonicTime sent);
  // The server answered a beat sent at `sent` that its job store is away. Nobody is
  // given the job meanwhile, and afterwards all leases are pushed forward before they
  // are judged (service.md 2.1), so the attempt goes on. For kMaxOutage after the
  // last directive: one server may be cut off from a store that others reach. What
  // it then writes is refused.
  void OnStoreAway(MonotonicTime sent);

  void Stop(StopReason reason);
  // kLost once the lease ran out and no server could say otherwise.
  StopReason stop_reason(MonotonicTime now) const;
  // CANCELLED from the moment the attempt must not go on (kRelease may).
  absl::Status CheckRunning() const;

  static constexpr int kMaxEventsPerBeat = 500;
  static constexpr std::size_t kMaxBeatBytes = 512 << 10;  // a call has beats of several jobs
  static constexpr std::size_t kMaxEventBytes = 64 << 10;
  // Of events the server has not confirmed; later ones are dropped.
  static constexpr std::size_t kMaxPendingBytes = 16 << 20;
  static constexpr int kMaxLastEvents = 1000;
  static constexpr std::size_t kMaxLastBytes = 3 << 20;  // of the 4 MiB of a call
  // The end of a lease is kept free for killing the engine: a fifth of the ttl,
  // at most this.
  static constexpr std::chrono::seconds kMaxMargin{5};
  static constexpr std::chrono::minutes kMaxOutage{10};

 private:
  v1::JobEvent NewEvent() const;
  void Push(v1::JobEvent event);  // needs mutex_
  void CloseStage();              // needs mutex_
  // How many of the oldest both limits allow. Needs mutex_.
  std::size_t Fitting(std::size_t events, std::size_t bytes) const;
  void AddEvents(std::size_t events, std::size_t bytes, v1::JobBeat* beat) const;  // needs mutex_
  void Wake();

  const std::string job_;
  const std::string job_uid_;
  const std::int64_t epoch_;
  const MonotonicTime::duration margin_;

  mutable std::mutex mutex_;
  std::function<void()> wake_;
  std::deque<v1::JobEvent> events_;
  std::size_t pending_bytes_ = 0;  // of events_
  std::int64_t first_event_ = 0;   // number of events_.front()
  int log_lines_ = 0;
  v1::JobProgress progress_;
  bool progress_changed_ = false;
  StopReason stop_ = StopReason::kNone;
  MonotonicTime::duration ttl_;
  MonotonicTime confirmed_end_;  // of the lease, as the server last told it
  MonotonicTime lease_end_;      // the same, or later while the store is away
};

}  // namespace quantry::agent
