#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "server/jobs/rules.h"
#include "server/jobs/sql_turns.h"
#include "server/jobs/sqlite/worker_calls.h"

// RegisterWorker and Acquire.
namespace quantry::server::sqlite {
namespace {

// last_seen is written at most this often: an idle poll must not cost a sync.
constexpr Duration kSeenResolution = std::chrono::seconds(2);
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// What a worker can run.
struct Abilities {
  std::vector<std::string> methods;
  std::vector<int64_t> gpu_memory = {kUnlimited};  // [n]: of the smallest of its n largest GPUs
  int64_t host_memory = kUnlimited;

  explicit Abilities(const v1::WorkerInfo& worker)
      : methods(worker.methods().begin(), worker.methods().end()) {
    for (const v1::Gpu& gpu : worker.gpus()) gpu_memory.push_back(gpu.memory_bytes());
    std::sort(gpu_memory.rbegin(), gpu_memory.rend());
    if (worker.host_memory_bytes() > 0) host_memory = worker.host_memory_bytes();
  }
};

struct Candidate {
  int64_t rank = 0;
  int64_t pk = 0;
  auto operator<=>(const Candidate&) const = default;  // NOLINT(modernize-use-nullptr)
};

// Among the tenant's jobs the worker can run, the one with the smallest rank.
// queue_claimable yields the first one of a method and GPU count without looking
// at the rest of the queue; only those before it that need more memory than the
// worker has, or wait out a pause, are passed (9 ms for 100,000 of them).
std::optional<Candidate> FirstOf(const Context& context, const std::string& tenant,
                                 const Abilities& worker) {
  std::optional<Candidate> best;
  for (const std::string& method : worker.methods) {
    for (size_t gpus = 0; gpus < worker.gpu_memory.size(); ++gpus) {
      Rows rows = context.db.Query(
          "SELECT rank, pk FROM queue WHERE state = 1 AND tenant = ? AND method = ?"
          " AND gpu_count = ? AND not_before <= ? AND min_gpu_memory <= ? AND host_memory <= ?"
          " ORDER BY rank, pk LIMIT 1",
          tenant, method, static_cast<int>(gpus), context.now, worker.gpu_memory[gpus],
          worker.host_memory);
      if (!rows.Next()) continue;
      const Candidate found{rows.Int(0), rows.Int(1)};
      if (!best || found < *best) best = found;
    }
  }
  return best;
}

// The first job of the first tenant in turn that has one for the worker.
std::optional<int64_t> Pick(const Context& context, const v1::WorkerInfo& info) {
  const Abilities worker(info);
  for (const std::string& tenant : sql::TenantsInTurn(context.db)) {
    if (auto first = FirstOf(context, tenant, worker)) return first->pk;
  }
  return std::nullopt;
}

Grant MakeGrant(const Context& context, int64_t pk, Duration ttl) {
  Grant grant{ReadJob(context.db, pk), ttl, std::nullopt};
  Rows rows = context.db.Query("SELECT checkpoint FROM job_checkpoints WHERE pk = ?", pk);
  if (rows.Next()) rows.Parse(0, &grant.resume.emplace());
  return grant;
}

absl::StatusOr<Grant> Claim(const Context& context, const WorkerRow& worker,
                            const std::string& acquire_id, int64_t pk) {
  Database& db = context.db;
  Duration ttl = context.policy.first_lease_ttl;
  db.Execute(
      "UPDATE queue SET state = 2, epoch = epoch + 1, worker_id = ?2, acquire_id = ?3,"
      " claim_time = ?4, lease_until = ?5, not_before = 0, steps_done = 0, progress_time = ?4,"
      " next_event_offset = 0 WHERE pk = ?1",
      pk, worker.worker_id, acquire_id, context.now, context.now + ttl);
  db.Execute(
      "UPDATE jobs SET epoch = epoch + 1, worker = ?2, start_time = coalesce(start_time, ?3),"
      " last_claim = ?3, engine_version = ?4 WHERE pk = ?1",
      pk, worker.worker_id, context.now, worker.info.engine_version());
  db.Execute("DELETE FROM job_progress WHERE pk = ?", pk);
  int64_t epoch = 0;
  {
    Rows rows = db.Query("SELECT epoch FROM jobs WHERE pk = ?", pk);
    if (rows.Next()) epoch = rows.Int(0);
  }
  StateChange change{.pk = pk,
                     .from = JobState::kQueued,
                     .to = JobState::kRunning,
                     .epoch = epoch,
                     .reason = "claimed by " + worker.worker_id};
  absl::Status changed = ChangeState(db, change, context.now);
  if (!changed.ok()) return changed;
  return MakeGrant(context, pk, ttl);
}

// The lease an earlier call with this acquire_id was given, if it still holds.
std::optional<int64_t> FindRepeat(const Context& context, const WorkerRow& worker,
                                  const std::string& acquire_id) {
  Rows rows = context.db.Query("SELECT pk FROM queue WHERE worker_id = ? AND acquire_id = ?",
                               worker.worker_id, acquire_id);
  if (!rows.Next()) return std::nullopt;
  return rows.Int(0);
}

void Touch(const Context& context, const WorkerRow& worker) {
  if (context.now - worker.last_seen < kSeenResolution) return;
  context.db.Execute("UPDATE workers SET last_seen = ? WHERE worker_id = ?", context.now,
                     worker.worker_id);
}

// A new incarnation means that the process holding these leases is dead. Returns
// how many there were.
absl::StatusOr<int> LapseLeases(const Context& context, const std::string& worker_id) {
  int lapsed = 0;
  for (const QueueRow& row : ReadLeasedBy(context.db, worker_id)) {
    auto ended = EndLost(context, row, "was started again");
    if (!ended.ok()) return ended.status();
    context.db.NoteChanged(ReadKey(context.db, row.pk));
    ++lapsed;
  }
  return lapsed;
}

}  // namespace

absl::StatusOr<int> RegisterWorker(const Context& context, const v1::WorkerInfo& worker,
                                   const std::string& session) {
  std::optional<WorkerRow> known = FindWorkerById(context.db, worker.worker_id());
  bool same = known && known->incarnation == worker.incarnation();
  absl::StatusOr<int> lapsed = 0;
  if (known && !same) {
    lapsed = LapseLeases(context, worker.worker_id());
    if (!lapsed.ok()) return lapsed;
  }
  context.db.Execute(
      "INSERT OR REPLACE INTO workers"
      " (worker_id, incarnation, session, info, last_seen, draining, terminate)"
      " VALUES (?, ?, ?, ?, ?, ?, ?)",
      worker.worker_id(), worker.incarnation(), session, worker, context.now,
      same && known->draining, same && known->terminate);
  return lapsed;
}

absl::StatusOr<std::optional<Grant>> Acquire(const Context& context,
                                             const AcquireRequest& request) {
  std::optional<WorkerRow> worker = FindWorkerBySession(context.db, request.session);
  if (!worker) return UnknownWorker();
  Touch(context, *worker);
  if (std::optional<int64_t> pk = FindRepeat(context, *worker, request.acquire_id)) {
    Duration ttl = context.policy.first_lease_ttl;
    context.db.Execute("UPDATE queue SET lease_until = max(lease_until, ?) WHERE pk = ?",
                       context.now + ttl, *pk);
    return MakeGrant(context, *pk, ttl);
  }
  if (worker->draining || ReadPause(context.db)) return std::nullopt;
  std::optional<int64_t> pk = Pick(context, worker->info);
  if (!pk) return std::nullopt;
  absl::StatusOr<Grant> grant = Claim(context, *worker, request.acquire_id, *pk);
  if (!grant.ok()) return grant.status();
  return *std::move(grant);
}

}  // namespace quantry::server::sqlite
