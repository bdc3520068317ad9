#include "worker/agent/agent.h"

#include <limits>
#include <optional>
#include <thread>
#include <vector>

#include "common/ids.h"
#include "common/log.h"
#include "worker/agent/name_attempt.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kLookAgain{1000};  // for disk space, after QUIET

// Told once per shortage, so that its numbers do not make news.
std::string TooLittleDisk(std::int64_t free, std::int64_t wanted) {
  return "too little free disk space in its work folder: wanted " + std::to_string(wanted >> 20) +
         " MiB, got " + std::to_string(free >> 20) +
         " MiB; free some, or lower --min-free-disk-bytes";
}

}  // namespace

Agent::Agent(AgentOptions options, WorkerClient& client, const WorkDir& work_dir, BlobCache& cache,
             const Materializer& materializer, const EngineRunner& engine, WorkerMetrics& metrics,
             EngineDefaults defaults)
    : options_(options),
      client_(client),
      work_dir_(work_dir),
      cache_(cache),
      keeper_(client, [this](v1::WorkerDirective directive) { OnDirective(directive); }),
      parts_{client,
             keeper_,
             work_dir,
             materializer,
             engine,
             metrics,
             std::move(defaults),
             options_.patience,
             [this] { FreeDisk(std::numeric_limits<std::int64_t>::max()); }},
      idle_since_(steady_clock::now()) {}

absl::Status Agent::Run() {
  const auto status = client_.Register(drain_.get_token());
  if (drain_.stop_requested()) return absl::OkStatus();
  if (!status.ok()) return status;
  registered_ = true;
  log::Info("registered", {{"worker", client_.info().worker_id()},
                           {"engine", client_.info().engine_version()},
                           {"slots", options_.slots}});
  std::jthread beats([this](std::stop_token stop) { keeper_.Run(stop); });
  std::vector<std::jthread> slots;
  running_slots_ = options_.slots;
  idle_since_ = steady_clock::now();
  for (int i = 0; i < options_.slots; ++i) slots.emplace_back([this] { RunSlot(); });
  WaitForEnd();
  slots.clear();  // joins
  beats.request_stop();
  return absl::OkStatus();
}

void Agent::Drain() {
  drain_.request_stop();
  if (give_back_.exchange(true)) {
    keeper_.StopAll(StopReason::kReleaseNow);
    return;
  }
  log::Info("draining: no new jobs, running ones stop at their next checkpoint");
  keeper_.StopAll(StopReason::kRelease);
  changed_.notify_all();
}

std::string Agent::NotReady() const {
  if (!registered_) return "not registered with the server yet";
  if (drain_.stop_requested()) return "draining";
  if (disk_low_) return "too little free disk space in the work folder";
  return "";
}

void Agent::OnDirective(v1::WorkerDirective directive) {
  quiet_ = directive == v1::WORKER_DIRECTIVE_QUIET;
  if (directive == v1::WORKER_DIRECTIVE_TERMINATE && !give_back_) Drain();
}

bool Agent::Pause(milliseconds time) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, drain_.get_token(), time, [] { return false; });
  return !drain_.stop_requested();
}

// Waits for the slots; asks for the end when there is nothing to do, and stops
// politely no longer once the drain's grace is over.
void Agent::WaitForEnd() {
  std::optional<MonotonicTime> give_up;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, milliseconds(200), [this] { return running_slots_ == 0; });
      if (running_slots_ == 0) return;
    }
    const auto now = steady_clock::now();
    if (give_back_) {
      if (!give_up) give_up = now + options_.drain_grace;
      if (now >= *give_up) keeper_.StopAll(StopReason::kReleaseNow);
      continue;
    }
    const std::lock_guard lock(mutex_);
    if (!drain_.stop_requested() && options_.max_idle.count() > 0 && busy_ == 0 &&
        now - idle_since_ >= options_.max_idle) {
      log::Info("idle for too long, ending", {{"seconds", options_.max_idle.count()}});
      drain_.request_stop();
    }
  }
}

void Agent::FreeDisk(std::int64_t bytes) {
  work_dir_.RemoveKeptCheckpoints();
  cache_.Evict(bytes);
}

bool Agent::MayAcquire() {
  if (quiet_) return false;
  cache_.Trim();
  const auto free = work_dir_.FreeBytes();
  if (free.ok() && *free < options_.min_free_disk_bytes) {
    FreeDisk(options_.min_free_disk_bytes - *free);
  }
  const auto now_free = work_dir_.FreeBytes();
  const bool low = now_free.ok() && *now_free < options_.min_free_disk_bytes;
  if (low == disk_low_.exchange(low)) return !low;
  if (!low) {
    keeper_.SetRefusal("");
    return true;
  }
  log::Warning("too little free disk space, no jobs are taken",
               {{"work_dir", work_dir_.path()},
                {"free_bytes", *now_free},
                {"wanted_bytes", options_.min_free_disk_bytes}});
  keeper_.SetRefusal(TooLittleDisk(*now_free, options_.min_free_disk_bytes));
  return false;
}

void Agent::RunSlot() {
  JobRunner runner(parts_);
  DoublingWait wait = WaitForServer();
  std::string acquire_id = NewUuid4();
  bool open_question = false;  // an acquire call that was never answered
  while (!drain_.stop_requested()) {
    if (!MayAcquire()) {
      Pause(kLookAgain);
      continue;
    }
    const auto answer = client_.Acquire(acquire_id, options_.acquire_wait, drain_.get_token());
    const auto granted = steady_clock::now();
    open_question = !answer.ok();
    if (!answer.ok()) {
      // The same id again: a lease whose answer got lost comes back.
      if (drain_.stop_requested()) break;
      log::Warning("cannot acquire jobs", {{"error", answer.status().ToString()}});
      Pause(wait.Next());
      continue;
    }
    wait.Reset();
    acquire_id = NewUuid4();
    if (!answer->has_lease()) continue;
    {
      const std::lock_guard lock(mutex_);
      ++busy_;
    }
    runner.Run(answer->lease(), granted);
    const std::lock_guard lock(mutex_);
    --busy_;
    idle_since_ = steady_clock::now();
    if (options_.once) drain_.request_stop();
  }
  if (open_question) ReturnUnwanted(acquire_id);
  const std::lock_guard lock(mutex_);
  --running_slots_;
  changed_.notify_all();
}

// A long poll that was cut off may have been granted a job: ask once more and
// give it back, so that it need not wait for its lease to lapse.
void Agent::ReturnUnwanted(const std::string& acquire_id) {
  const auto answer = client_.Acquire(acquire_id, milliseconds(0), {});
  if (!answer.ok() || !answer->has_lease()) return;
  v1::ReleaseJobRequest request;
  NameAttempt(answer->lease(), &request);
  request.set_reason("the worker stops");
  (void)client_.Release(request, [] { return false; });
}

}  // namespace quantry::agent
