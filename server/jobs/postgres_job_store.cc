#include "server/jobs/postgres_job_store.h"

#include <random>
#include <utility>

#include "common/errors.h"
#include "server/jobs/postgres/pool.h"
#include "server/jobs/postgres/quotas.h"
#include "server/jobs/postgres/schema.h"
#include "server/jobs/postgres/tenant_calls.h"
#include "server/jobs/postgres/worker_calls.h"
#include "server/jobs/rules.h"

namespace quantry::server {
namespace {

using postgres::Context;
using postgres::Database;

class PostgresJobStore : public ViewedJobStore {
 public:
  explicit PostgresJobStore(const PostgresOptions& options)
      : policy_(options.policy),
        on_changed_(options.on_changed),
        pool_([conninfo = options.conninfo] { return postgres::Database::Open(conninfo); },
              options.connections) {}

  absl::StatusOr<SubmitResult> Submit(const SubmitRequest& request, Time now) override {
    return Write<SubmitResult>(now, [&](const Context& c) { return postgres::Submit(c, request); });
  }
  absl::StatusOr<Job> Get(const JobKey& key) override {
    return Read<Job>([&](Database& db) { return postgres::Get(db, key); });
  }
  absl::StatusOr<JobPage> List(const ListQuery& query) override {
    return Read<JobPage>([&](Database& db) { return postgres::List(db, query); });
  }
  absl::StatusOr<Job> Update(const UpdateRequest& request, Time now) override {
    return Write<Job>(now, [&](const Context& c) { return postgres::Update(c, request); });
  }
  absl::StatusOr<Job> Cancel(const CancelRequest& request, Time now) override {
    return Write<Job>(now, [&](const Context& c) { return postgres::Cancel(c, request); });
  }
  absl::StatusOr<Job> Retry(const RetryRequest& request, Time now) override {
    return Write<Job>(now, [&](const Context& c) { return postgres::Retry(c, request); });
  }
  absl::StatusOr<Job> Delete(const DeleteRequest& request, Time now) override {
    return Write<Job>(now, [&](const Context& c) { return postgres::Delete(c, request); });
  }
  absl::StatusOr<TenantQuota> Quota(const std::string& tenant) override {
    return ReadValue([&](Database& db) { return postgres::ReadQuota(db, tenant); });
  }
  absl::StatusOr<int64_t> ArtifactBytes(const std::string& tenant) override {
    return ReadValue([&](Database& db) { return postgres::ArtifactBytes(db, tenant); });
  }
  absl::StatusOr<EventBatch> Events(const JobKey& key, int64_t after, int limit) override {
    return Read<EventBatch>([&](Database& db) { return postgres::Events(db, key, after, limit); });
  }
  absl::StatusOr<Artifact> GetArtifact(const std::string& tenant, const std::string& uid) override {
    return Read<Artifact>([&](Database& db) { return postgres::GetArtifact(db, tenant, uid); });
  }
  absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int limit,
                                             std::optional<Cursor> after) override {
    return ReadValue(
        [&](Database& db) { return postgres::ListArtifacts(db, tenant, limit, after); });
  }

  absl::StatusOr<int> RegisterWorker(const v1::WorkerInfo& worker, const std::string& session,
                                     Time now) override {
    return Write<int>(
        now, [&](const Context& c) { return postgres::RegisterWorker(c, worker, session); });
  }
  absl::StatusOr<std::optional<Grant>> Acquire(const AcquireRequest& request, Time now) override {
    return Write<std::optional<Grant>>(
        now, [&](const Context& c) { return postgres::Acquire(c, request); });
  }
  absl::StatusOr<HeartbeatReply> Heartbeat(const WorkerBeat& beat, Time now) override {
    return Write<HeartbeatReply>(now,
                                 [&](const Context& c) { return postgres::Heartbeat(c, beat); });
  }
  absl::Status CommitCheckpoint(const CheckpointRequest& request, Time now) override {
    return WriteStatus(now,
                       [&](const Context& c) { return postgres::CommitCheckpoint(c, request); });
  }
  absl::Status Complete(const CompleteRequest& request, Time now) override {
    auto state =
        Write<JobState>(now, [&](const Context& c) { return postgres::Complete(c, request); });
    if (!state.ok()) return state.status();
    if (*state != JobState::kCancelled) return absl::OkStatus();
    return LeaseLost(request.lease.job, request.lease.epoch,
                     "the job was cancelled before this commit");
  }
  absl::StatusOr<JobState> Fail(const FailRequest& request, Time now) override {
    return Write<JobState>(now, [&](const Context& c) { return postgres::Fail(c, request); });
  }
  absl::Status Release(const LeaseToken& lease, const std::string& reason, Time now) override {
    return WriteStatus(now, [&](const Context& c) { return postgres::Release(c, lease, reason); });
  }

  absl::StatusOr<std::vector<Worker>> ListWorkers(const std::string& after, int limit,
                                                  Time now) override {
    return ReadValue([&](Database& db) {
      const auto rows = postgres::ReadWorkers(db, after, limit);
      return postgres::WithJobs(db, rows, policy_, now);
    });
  }
  absl::StatusOr<Worker> DrainWorker(const std::string& worker_id, bool terminate,
                                     Time now) override {
    return Write<Worker>(
        now, [&](const Context& c) { return postgres::DrainWorker(c, worker_id, terminate); });
  }
  absl::Status PauseQueue(const std::string& reason, Time now) override {
    return WriteStatus(now, [&](const Context& c) {
      c.db.Execute(
          "INSERT INTO queue_pause (id, reason, create_time) VALUES (1, $1, $2)"
          " ON CONFLICT (id) DO UPDATE SET reason = excluded.reason",
          reason, c.now);
      return absl::OkStatus();
    });
  }
  absl::Status ResumeQueue() override {
    return pool_.Write([](Database& db) {
      db.Execute("DELETE FROM queue_pause");
      return absl::OkStatus();
    });
  }
  absl::StatusOr<TenantUsage> Usage(const std::string& tenant) override {
    return ReadValue([&](Database& db) { return postgres::ReadUsage(db, tenant); });
  }
  absl::StatusOr<TenantUsage> SetQuota(const TenantQuota& quota) override {
    return Write<TenantUsage>(Time(), [&](const Context& c) -> absl::StatusOr<TenantUsage> {
      return postgres::SetQuota(c.db, quota);
    });
  }
  absl::StatusOr<SweepReport> Sweep(Time now) override {
    return Write<SweepReport>(now, [](const Context& c) { return postgres::Sweep(c); });
  }
  absl::StatusOr<StoreStats> Stats(Time now) override {
    return ReadValue([&](Database& db) { return postgres::Stats(db, policy_, now); });
  }
  absl::StatusOr<std::vector<Job>> ListAcross(JobsAcross which, int limit) override {
    return ReadValue([&](Database& db) { return postgres::ListAcross(db, which, limit); });
  }
  absl::StatusOr<std::vector<Garbage>> ListGarbage(int limit) override {
    return ReadValue([&](Database& db) {
      postgres::Rows rows = db.Query(
          "SELECT tenant, job_uid FROM garbage ORDER BY create_time, job_uid LIMIT $1", limit);
      std::vector<Garbage> garbage;
      while (rows.Next()) garbage.push_back({rows.Text(0), rows.Text(1)});
      return garbage;
    });
  }
  absl::Status ForgetGarbage(const Garbage& garbage) override {
    return pool_.Write([&](Database& db) {
      db.Execute("DELETE FROM garbage WHERE job_uid = $1", garbage.job_uid);
      return absl::OkStatus();
    });
  }
  absl::StatusOr<std::vector<JobReferences>> ListReferences(const std::string& after,
                                                            int limit) override {
    return ReadValue([&](Database& db) { return postgres::ListReferences(db, after, limit); });
  }
  absl::Status Ping() override {
    return pool_.Read([](Database& db) {
      db.Execute("SELECT n FROM job_counts WHERE state = 1");
      return absl::OkStatus();
    });
  }

 private:
  // Carries an operation's value out; it counts only when the call went well.
  template <typename Result, typename Body>
  absl::StatusOr<Result> Read(const Body& body) {
    std::optional<Result> value;
    absl::Status status = pool_.Read([&](Database& db) -> absl::Status {
      absl::StatusOr<Result> result = body(db);
      if (!result.ok()) return result.status();
      value = *std::move(result);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return *std::move(value);
  }
  template <typename Body>
  auto ReadValue(const Body& body) -> absl::StatusOr<decltype(body(std::declval<Database&>()))> {
    using Result = decltype(body(std::declval<Database&>()));
    return Read<Result>([&](Database& db) -> absl::StatusOr<Result> { return body(db); });
  }
  template <typename Result, typename Body>
  absl::StatusOr<Result> Write(Time now, const Body& body) {
    std::optional<Result> value;
    absl::Status status = WriteStatus(now, [&](const Context& context) -> absl::Status {
      absl::StatusOr<Result> result = body(context);
      if (!result.ok()) return result.status();
      value = *std::move(result);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return *std::move(value);
  }
  template <typename Body>
  absl::Status WriteStatus(Time now, const Body& body) {
    std::vector<JobKey> changed;
    absl::Status status = pool_.Write([&](Database& db) -> absl::Status {
      absl::Status done = body(Context{db, policy_, now, random_});
      changed = db.TakeChanged();
      return done;
    });
    if (!status.ok() || !on_changed_) return status;
    for (const JobKey& job : changed) on_changed_(job);
    return status;
  }

  uint64_t Random() {
    std::lock_guard lock(random_mutex_);
    return generator_();
  }

  const JobPolicy policy_;
  const ChangeObserver on_changed_;
  std::mutex random_mutex_;
  std::mt19937_64 generator_{std::random_device{}()};
  const std::function<uint64_t()> random_ = [this] { return Random(); };
  postgres::Pool pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ViewedJobStore>> OpenPostgresJobStore(
    const PostgresOptions& options) {
  auto db = Database::Open(options.conninfo);
  if (!db.ok()) return db.status();
  absl::Status migrated = postgres::Migrate(**db);
  if (!migrated.ok()) return migrated;
  return std::make_unique<PostgresJobStore>(options);
}

}  // namespace quantry::server
