#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "server/jobs/postgres/quotas.h"
#include "server/jobs/postgres/worker_calls.h"
#include "server/jobs/rules.h"
#include "server/jobs/sql_rows.h"
#include "server/jobs/sql_turns.h"

// RegisterWorker and Acquire.
namespace quantry::server::postgres {
namespace {

// last_seen is written at most this often: an idle poll costs no write.
constexpr Duration kSeenResolution = std::chrono::seconds(2);
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
// How many jobs at the head of the queue a claim tries to lock before it looks
// further: others that claim at the same time hold the first ones.
constexpr int kFirstCandidates = 32;
constexpr int kMaxCandidates = 2048;

// What a worker can run, as parallel arrays: a method, a number of GPUs, and
// the memory the smallest of so many of its GPUs has.
struct Abilities {
  std::string methods;
  std::string gpus;
  std::string gpu_memory;
  int64_t host_memory = kUnlimited;

  explicit Abilities(const v1::WorkerInfo& worker) {
    std::vector<int64_t> memory;  // of the GPUs, largest first
    for (const v1::Gpu& gpu : worker.gpus()) memory.push_back(gpu.memory_bytes());
    std::sort(memory.rbegin(), memory.rend());
    std::vector<std::string> m;
    std::vector<std::string> g;
    std::vector<std::string> b;
    for (const std::string& method : worker.methods()) {
      for (size_t count = 0; count <= memory.size(); ++count) {
        m.push_back(method);
        g.push_back(std::to_string(count));
        b.push_back(std::to_string(count == 0 ? kUnlimited : memory[count - 1]));
      }
    }
    methods = TextArray(m);
    gpus = TextArray(g);
    gpu_memory = TextArray(b);
    if (worker.host_memory_bytes() > 0) host_memory = worker.host_memory_bytes();
  }
};

struct Picked {
  int64_t pk = 0;
  std::string tenant;
  bool limited = false;  // the tenant has a quota of running jobs
};

// Locks the first job of the first of `tenants` that the worker can run and
// nobody else is claiming. Each tenant, method and GPU count has its own range
// of queue_claimable, read from its head (past jobs that need more memory than
// the worker has, or wait out a pause) and only when its turn comes; only the
// merged head is locked, one row after the other.
std::optional<Picked> TryPick(const Context& context, const Abilities& worker,
                              const std::vector<std::string>& tenants, int candidates) {
  // In the text: a plan for any limit might read and sort the whole queue.
  const std::string limit = std::to_string(candidates);
  const std::string sql =
      "SELECT q.pk, q.tenant, EXISTS (SELECT 1 FROM quotas t WHERE t.tenant = q.tenant"
      " AND t.max_running > 0)::int FROM queue q JOIN (SELECT t.turn, c.pk, c.rank FROM"
      " unnest($1::text[]) WITH ORDINALITY AS t (tenant, turn)"
      " CROSS JOIN unnest($2::text[], $3::int[], $4::bigint[]) AS a (method, gpus, memory)"
      " CROSS JOIN LATERAL (SELECT pk, rank FROM queue WHERE state = 1 AND tenant = t.tenant"
      " AND method = a.method AND gpu_count = a.gpus AND not_before <= $6"
      " AND min_gpu_memory <= a.memory AND host_memory <= $5 ORDER BY rank, pk LIMIT " +
      limit + ") c ORDER BY t.turn, c.rank, c.pk LIMIT " + limit +
      ") head ON head.pk = q.pk"
      " WHERE q.state = 1 ORDER BY head.turn, head.rank, head.pk LIMIT 1"
      " FOR UPDATE OF q SKIP LOCKED";
  Rows rows = context.db.Query(sql, TextArray(tenants), worker.methods, worker.gpus,
                               worker.gpu_memory, worker.host_memory, context.now);
  if (!rows.Next()) return std::nullopt;
  return Picked{rows.Int(0), rows.Text(1), rows.Int(2) != 0};
}

std::optional<int64_t> Pick(const Context& context, const v1::WorkerInfo& info) {
  const Abilities worker(info);
  // PostgreSQL takes each array for ten values, so a plan for any of them looks dearer to it
  // than one for these: it would plan anew for each claim, which takes longer than the claim.
  context.db.Script("SET LOCAL plan_cache_mode = force_generic_plan");
  std::vector<std::string> tenants = sql::TenantsInTurn(context.db);
  for (int candidates = kFirstCandidates; candidates <= kMaxCandidates && !tenants.empty();) {
    std::optional<Picked> picked = TryPick(context, worker, tenants, candidates);
    if (!context.db.status().ok()) return std::nullopt;
    if (!picked) {
      candidates *= 8;  // all of them are being claimed, or there are none
      continue;
    }
    if (!picked->limited || MayRunAnother(context.db, picked->tenant)) return picked->pk;
    std::erase(tenants, picked->tenant);
  }
  return std::nullopt;
}

Grant MakeGrant(const Context& context, int64_t pk, Duration ttl) {
  Grant grant{ReadJob(context.db, pk), ttl, std::nullopt};
  Rows rows = context.db.Query("SELECT checkpoint FROM job_checkpoints WHERE pk = $1", pk);
  if (rows.Next()) rows.Parse(0, &grant.resume.emplace());
  return grant;
}

absl::StatusOr<Grant> Claim(const Context& context, const WorkerRow& worker,
                            const std::string& acquire_id, int64_t pk) {
  Database& db = context.db;
  const Duration ttl = context.policy.first_lease_ttl;
  const int64_t epoch = sql::One(db.Query(
      "UPDATE queue SET state = 2, epoch = epoch + 1, worker_id = $2, acquire_id = $3,"
      " claim_time = $4, lease_until = $5, not_before = 0, steps_done = 0, progress_time = $4,"
      " next_event_offset = 0 WHERE pk = $1 RETURNING epoch",
      pk, worker.worker_id, acquire_id, context.now, context.now + ttl));
  StateChange change{.pk = pk,
                     .from = JobState::kQueued,
                     .to = JobState::kRunning,
                     .epoch = epoch,
                     .reason = "claimed by " + worker.worker_id};
  db.Execute(
      "UPDATE jobs SET state = 2, state_reason = $5, version = version + 1, update_time = $3,"
      " epoch = $4, worker = $2, start_time = coalesce(start_time, $3), last_claim = $3,"
      " engine_version = $6"
      " WHERE pk = $1",
      pk, worker.worker_id, context.now, epoch, change.reason, worker.info.engine_version());
  db.Execute("DELETE FROM job_progress WHERE pk = $1", pk);
  AppendEvent(db, pk, epoch, context.now, EventOf(change));
  return MakeGrant(context, pk, ttl);
}

// The lease an earlier call with this acquire_id was given, if it still holds.
std::optional<int64_t> RenewRepeat(const Context& context, const WorkerRow& worker,
                                   const std::string& acquire_id) {
  Rows rows = context.db.Query(
      "UPDATE queue SET lease_until = greatest(lease_until, $3) WHERE worker_id = $1"
      " AND acquire_id = $2 RETURNING pk",
      worker.worker_id, acquire_id, context.now + context.policy.first_lease_ttl);
  if (!rows.Next()) return std::nullopt;
  return rows.Int(0);
}

void Touch(const Context& context, const WorkerRow& worker) {
  if (context.now - worker.last_seen < kSeenResolution) return;
  context.db.Execute("UPDATE workers SET last_seen = $1 WHERE worker_id = $2", context.now,
                     worker.worker_id);
}

// A new incarnation means that the process holding these leases is dead. Returns
// how many there were.
absl::StatusOr<int> LapseLeases(const Context& context, const std::string& worker_id) {
  int lapsed = 0;
  for (const QueueRow& row : LockLeasedBy(context.db, worker_id)) {
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
  std::optional<WorkerRow> known = LockWorker(context.db, worker.worker_id());
  const bool same = known && known->incarnation == worker.incarnation();
  absl::StatusOr<int> lapsed = 0;
  if (known && !same) {
    lapsed = LapseLeases(context, worker.worker_id());
    if (!lapsed.ok()) return lapsed;
  }
  context.db.Execute(
      "INSERT INTO workers (worker_id, incarnation, session, info, last_seen, draining, terminate)"
      " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (worker_id) DO UPDATE SET"
      " incarnation = excluded.incarnation, session = excluded.session, info = excluded.info,"
      " last_seen = excluded.last_seen, draining = excluded.draining,"
      " terminate = excluded.terminate, refusal = ''",
      worker.worker_id(), worker.incarnation(), session, worker, context.now,
      same && known->draining, same && known->terminate);
  return lapsed;
}

absl::StatusOr<std::optional<Grant>> Acquire(const Context& context,
                                             const AcquireRequest& request) {
  std::optional<WorkerRow> worker = FindWorkerBySession(context.db, request.session);
  if (!worker) return UnknownWorker();
  Touch(context, *worker);
  if (std::optional<int64_t> pk = RenewRepeat(context, *worker, request.acquire_id)) {
    return MakeGrant(context, *pk, context.policy.first_lease_ttl);
  }
  if (worker->draining || ReadPause(context.db)) {
    context.db.CommitMayBeLate();
    return std::nullopt;
  }
  std::optional<int64_t> pk = Pick(context, worker->info);
  if (!pk) {
    context.db.CommitMayBeLate();  // nothing but last_seen
    return std::nullopt;
  }
  absl::StatusOr<Grant> grant = Claim(context, *worker, request.acquire_id, *pk);
  if (!grant.ok()) return grant.status();
  return *std::move(grant);
}

}  // namespace quantry::server::postgres
