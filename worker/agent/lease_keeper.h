#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <vector>

#include "worker/agent/job_session.h"
#include "worker/agent/worker_client.h"

namespace quantry::agent {

// Sends the heartbeats of every held lease: each heartbeat interval, within a
// second when progress changed, and within kEventDelay when events wait. Run
// is one loop for one thread; the others come from any thread.
//
// It never decides that a lease is lost: JobSession does, from the send time of
// the last answered beat on this machine's monotonic clock.
class LeaseKeeper {
 public:
  using OnWorkerDirective = std::function<void(v1::WorkerDirective)>;

  LeaseKeeper(WorkerClient& client, OnWorkerDirective on_directive);

  void Add(std::shared_ptr<JobSession> session);
  void Remove(const std::shared_ptr<JobSession>& session);
  void Wake();
  // Sessions that are added later, too.
  void StopAll(StopReason reason);
  // Why this worker takes no new jobs, told with every beat; "" = it does.
  void SetRefusal(const std::string& refusal);

  void Run(std::stop_token stop);
  // One beat for all sessions; false when the server did not answer.
  bool BeatOnce();

  static constexpr std::chrono::milliseconds kEventDelay{250};
  static constexpr std::chrono::milliseconds kProgressDelay{1000};
  // Of the 4 MiB of a call; the rest is for progress, which is always sent.
  static constexpr std::size_t kMaxCallBytes = 2 << 20;

 private:
  std::vector<std::shared_ptr<JobSession>> Sessions() const;
  // How long after the last beat the next one is due.
  std::chrono::milliseconds Delay() const;
  v1::HeartbeatRequest MakeRequest(const std::vector<std::shared_ptr<JobSession>>& sessions);

  WorkerClient& client_;
  OnWorkerDirective on_directive_;
  mutable std::mutex mutex_;
  std::condition_variable_any wake_;
  // Whose events come first in the next beat, so that each job gets its turn.
  std::atomic<std::size_t> turn_ = 0;
  bool news_ = false;
  std::string refusal_;
  bool refusal_changed_ = false;  // since the last beat
  std::vector<std::shared_ptr<JobSession>> sessions_;
  StopReason stop_ = StopReason::kNone;  // of the last StopAll
};

}  // namespace quantry::agent
