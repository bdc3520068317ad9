#include "server/status/status_reader.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

namespace quantry::server {
namespace {

constexpr auto kFresh = std::chrono::seconds(1);
// What is beyond is counted, not listed.
constexpr int kRunning = 100;
constexpr int kWaiting = 50;
constexpr int kEnded = 50;
constexpr int kWorkers = 200;
constexpr int kEvents = 100;  // newest ones of a job

Json Rows(const std::vector<Job>& jobs) {
  Json rows = Json::array();
  for (const Job& job : jobs) rows.push_back(JobRowJson(job, {}));
  return rows;
}

BlockLosses LossesOf(const v1::JobResult& result) {
  BlockLosses losses;
  for (const v1::BlockReport& block : result.blocks()) {
    losses[block.index()] = {block.loss_rtn(), block.loss_final()};
  }
  return losses;
}

}  // namespace

absl::StatusOr<Json> StatusReader::Look(Time now) {
  const auto stats = store_->Stats(now);
  if (!stats.ok()) return stats.status();
  const auto workers = store_->ListWorkers("", kWorkers, now);
  if (!workers.ok()) return workers.status();
  const auto running = view_->ListAcross(JobsAcross::kLeased, kRunning);
  if (!running.ok()) return running.status();
  const auto waiting = view_->ListAcross(JobsAcross::kWaiting, kWaiting);
  if (!waiting.ok()) return waiting.status();
  const auto ended = view_->ListAcross(JobsAcross::kEnded, kEnded);
  if (!ended.ok()) return ended.status();

  Json worker_rows = Json::array();
  for (const Worker& worker : *workers) worker_rows.push_back(WorkerJson(worker));
  Json running_rows = Json::array();
  std::set<std::string> uids;
  for (const Job& job : *running) {
    running_rows.push_back(JobRowJson(job, trails_.Look(job)));
    uids.insert(job.uid);
  }
  trails_.KeepOnly(uids);
  return Json{{"time", TimeText(now)},
              {"version", QUANTRY_VERSION},
              {"queue", QueueJson(*stats)},
              {"workers_known", stats->known_workers},
              {"workers", std::move(worker_rows)},
              {"running", std::move(running_rows)},
              {"waiting", Rows(*waiting)},
              {"ended", Rows(*ended)}};
}

absl::StatusOr<std::string> StatusReader::Status() {
  const MonotonicTime now = clock_->Monotonic();
  if (status_ && now - looked_at_ < kFresh) return *status_;
  auto json = Look(clock_->Now());
  if (!json.ok()) return json.status();
  status_ = JsonText(*json);
  looked_at_ = now;
  return *status_;
}

absl::StatusOr<std::string> StatusReader::JobPage(const JobKey& key) {
  const auto job = store_->Get(key);
  if (!job.ok()) return job.status();
  LossTrails own(store_);  // an ended job without result
  const BlockLosses losses = job->result            ? LossesOf(*job->result)
                             : IsLeased(job->state) ? trails_.Look(*job)
                                                    : own.Look(*job);
  Json json = JobPageJson(*job, losses);
  json["time"] = TimeText(clock_->Now());
  const int64_t after = std::max<int64_t>(0, job->last_sequence - kEvents);
  const auto events = store_->Events(key, after, kEvents);
  if (!events.ok()) return events.status();
  Json rows = Json::array();
  for (const v1::JobEvent& event : events->events) rows.push_back(EventJson(event));
  json["events"] = std::move(rows);
  return JsonText(json);
}

}  // namespace quantry::server
