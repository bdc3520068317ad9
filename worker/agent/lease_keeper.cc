#include "worker/agent/lease_keeper.h"

#include <algorithm>

#include "common/errors.h"
#include "common/log.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;

// A server answered, and no lease can be given or taken away.
bool StoreIsAway(const absl::Status& status) {
  return HasReason(status, Reason::kStoreUnavailable) || HasReason(status, Reason::kDiskFull);
}

}  // namespace

LeaseKeeper::LeaseKeeper(WorkerClient& client, OnWorkerDirective on_directive)
    : client_(client), on_directive_(std::move(on_directive)) {}

void LeaseKeeper::Add(std::shared_ptr<JobSession> session) {
  session->SetWake([this] { Wake(); });
  StopReason stop;
  {
    const std::lock_guard lock(mutex_);
    sessions_.push_back(session);
    stop = stop_;
  }
  if (stop != StopReason::kNone) session->Stop(stop);
  Wake();
}

void LeaseKeeper::Remove(const std::shared_ptr<JobSession>& session) {
  session->SetWake(nullptr);
  const std::lock_guard lock(mutex_);
  std::erase(sessions_, session);
}

void LeaseKeeper::Wake() {
  {
    const std::lock_guard lock(mutex_);
    news_ = true;
  }
  wake_.notify_all();
}

void LeaseKeeper::StopAll(StopReason reason) {
  {
    const std::lock_guard lock(mutex_);
    stop_ = std::max(stop_, reason);
  }
  for (const auto& session : Sessions()) session->Stop(reason);
}

void LeaseKeeper::SetRefusal(const std::string& refusal) {
  {
    const std::lock_guard lock(mutex_);
    if (refusal == refusal_) return;
    refusal_ = refusal;
    refusal_changed_ = true;
    news_ = true;
  }
  wake_.notify_all();
}

std::vector<std::shared_ptr<JobSession>> LeaseKeeper::Sessions() const {
  const std::lock_guard lock(mutex_);
  return sessions_;
}

milliseconds LeaseKeeper::Delay() const {
  milliseconds delay = client_.timing().heartbeat_interval;
  {
    const std::lock_guard lock(mutex_);
    if (refusal_changed_) return std::min(delay, kEventDelay);
  }
  for (const auto& session : Sessions()) {
    if (session->HasEvents()) return std::min(delay, kEventDelay);
    if (session->HasNews()) delay = std::min(delay, kProgressDelay);
  }
  return delay;
}

void LeaseKeeper::Run(std::stop_token stop) {
  auto last = std::chrono::steady_clock::now();
  bool answered = true;
  while (!stop.stop_requested()) {
    // A lost beat is repeated soon: each one missed eats into the lease.
    const milliseconds delay = answered ? Delay() : kEventDelay;
    const auto due = last + delay;
    if (std::chrono::steady_clock::now() < due) {
      std::unique_lock lock(mutex_);
      news_ = false;
      // Progress that changes without Wake is looked at once a second.
      wake_.wait_until(lock, stop, std::min(due, std::chrono::steady_clock::now() + kProgressDelay),
                       [this] { return news_; });
      continue;
    }
    last = std::chrono::steady_clock::now();
    answered = BeatOnce();
  }
}

v1::HeartbeatRequest LeaseKeeper::MakeRequest(
    const std::vector<std::shared_ptr<JobSession>>& sessions) {
  v1::HeartbeatRequest request;
  const std::size_t first = turn_++;
  std::size_t room = kMaxCallBytes;
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    v1::JobBeat beat = sessions[(first + i) % sessions.size()]->MakeBeat(room);
    room -= std::min(room, beat.ByteSizeLong());
    *request.add_jobs() = std::move(beat);
  }
  const std::lock_guard lock(mutex_);
  request.set_refusal(refusal_);
  refusal_changed_ = false;
  return request;
}

bool LeaseKeeper::BeatOnce() {
  const auto sessions = Sessions();
  const auto sent = std::chrono::steady_clock::now();
  const auto timing = client_.timing();
  const auto deadline = std::clamp(timing.ttl / 6, milliseconds(100), milliseconds(5000));
  const auto response = client_.Heartbeat(MakeRequest(sessions), deadline);
  if (!response.ok()) {
    log::Warning("heartbeat was not answered", {{"error", response.status().ToString()}});
    if (StoreIsAway(response.status())) {
      for (const auto& session : sessions) session->OnStoreAway(sent);
    }
    return false;
  }
  for (const v1::JobDirective& directive : response->jobs()) {
    for (const auto& session : sessions) {
      if (session->job() == directive.job()) session->OnAnswer(directive, sent);
    }
  }
  if (on_directive_) on_directive_(response->worker());
  return true;
}

}  // namespace quantry::agent
