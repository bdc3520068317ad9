#include "server/jobs/sqlite_job_store.h"

#include <random>
#include <utility>

#include "common/errors.h"
#include "server/jobs/rules.h"
#include "server/jobs/sqlite/connections.h"
#include "server/jobs/sqlite/data_dir_lock.h"
#include "server/jobs/sqlite/quotas.h"
#include "server/jobs/sqlite/schema.h"
#include "server/jobs/sqlite/tenant_calls.h"
#include "server/jobs/sqlite/worker_calls.h"

namespace quantry::server {
namespace {

using sqlite::Context;
using sqlite::Database;

// Carries an operation's value out of the transaction. The value counts only
// when the transaction did.
template <typename Result, typename Runner, typename Body>
absl::StatusOr<Result> RunFor(Runner& runner, const Body& body) {
  std::optional<Result> value;
  absl::Status status = runner.Run([&](Database& db) -> absl::Status {
    absl::StatusOr<Result> result = body(db);
    if (!result.ok()) return result.status();
    value = *std::move(result);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return *std::move(value);
}

class SqliteJobStore : public ViewedJobStore {
 public:
  SqliteJobStore(sqlite::DataDirLock lock, const JobPolicy& policy, ChangeObserver on_changed,
                 std::unique_ptr<Database> writer, std::unique_ptr<Database> checkpointer,
                 std::vector<std::unique_ptr<Database>> readers)
      : lock_(std::move(lock)),
        policy_(policy),
        on_changed_(std::move(on_changed)),
        random_(std::random_device{}()),
        readers_(std::move(readers)),
        checkpointer_(std::move(checkpointer)),
        writer_(std::move(writer)) {}

  absl::StatusOr<SubmitResult> Submit(const SubmitRequest& request, Time now) override {
    return Write<SubmitResult>(
        now, [&](const Context& c) { return sqlite::Submit(c.db, c.policy, request, c.now); });
  }
  absl::StatusOr<Job> Get(const JobKey& key) override {
    return Read<Job>([&](Database& db) { return sqlite::Get(db, key); });
  }
  absl::StatusOr<JobPage> List(const ListQuery& query) override {
    return Read<JobPage>([&](Database& db) { return sqlite::List(db, query); });
  }
  absl::StatusOr<Job> Update(const UpdateRequest& request, Time now) override {
    return Write<Job>(
        now, [&](const Context& c) { return sqlite::Update(c.db, c.policy, request, c.now); });
  }
  absl::StatusOr<Job> Cancel(const CancelRequest& request, Time now) override {
    return Write<Job>(now, [&](const Context& c) { return sqlite::Cancel(c.db, request, c.now); });
  }
  absl::StatusOr<Job> Retry(const RetryRequest& request, Time now) override {
    return Write<Job>(
        now, [&](const Context& c) { return sqlite::Retry(c.db, c.policy, request, c.now); });
  }
  absl::StatusOr<Job> Delete(const DeleteRequest& request, Time now) override {
    return Write<Job>(now, [&](const Context& c) { return sqlite::Delete(c.db, request, c.now); });
  }
  absl::StatusOr<TenantQuota> Quota(const std::string& tenant) override {
    return Read<TenantQuota>(
        [&](Database& db) -> absl::StatusOr<TenantQuota> { return sqlite::ReadQuota(db, tenant); });
  }
  absl::StatusOr<int64_t> ArtifactBytes(const std::string& tenant) override {
    return Read<int64_t>(
        [&](Database& db) -> absl::StatusOr<int64_t> { return sqlite::ArtifactBytes(db, tenant); });
  }
  absl::StatusOr<EventBatch> Events(const JobKey& key, int64_t after, int limit) override {
    return Read<EventBatch>([&](Database& db) { return sqlite::Events(db, key, after, limit); });
  }
  absl::StatusOr<Artifact> GetArtifact(const std::string& tenant, const std::string& uid) override {
    return Read<Artifact>([&](Database& db) { return sqlite::GetArtifact(db, tenant, uid); });
  }
  absl::StatusOr<ArtifactPage> ListArtifacts(const std::string& tenant, int limit,
                                             std::optional<Cursor> after) override {
    return Read<ArtifactPage>([&](Database& db) -> absl::StatusOr<ArtifactPage> {
      return sqlite::ListArtifacts(db, tenant, limit, after);
    });
  }

  absl::StatusOr<int> RegisterWorker(const v1::WorkerInfo& worker, const std::string& session,
                                     Time now) override {
    return Write<int>(now,
                      [&](const Context& c) { return sqlite::RegisterWorker(c, worker, session); });
  }
  absl::StatusOr<std::optional<Grant>> Acquire(const AcquireRequest& request, Time now) override {
    return Write<std::optional<Grant>>(
        now, [&](const Context& c) { return sqlite::Acquire(c, request); });
  }
  absl::StatusOr<HeartbeatReply> Heartbeat(const WorkerBeat& beat, Time now) override {
    return Write<HeartbeatReply>(now, [&](const Context& c) { return sqlite::Heartbeat(c, beat); });
  }
  absl::Status CommitCheckpoint(const CheckpointRequest& request, Time now) override {
    return WriteStatus(now, [&](const Context& c) { return sqlite::CommitCheckpoint(c, request); });
  }
  absl::Status Complete(const CompleteRequest& request, Time now) override {
    auto state =
        Write<JobState>(now, [&](const Context& c) { return sqlite::Complete(c, request); });
    if (!state.ok()) return state.status();
    if (*state != JobState::kCancelled) return absl::OkStatus();
    return LeaseLost(request.lease.job, request.lease.epoch,
                     "the job was cancelled before this commit");
  }
  absl::StatusOr<JobState> Fail(const FailRequest& request, Time now) override {
    return Write<JobState>(now, [&](const Context& c) { return sqlite::Fail(c, request); });
  }
  absl::Status Release(const LeaseToken& lease, const std::string& reason, Time now) override {
    return WriteStatus(now, [&](const Context& c) { return sqlite::Release(c, lease, reason); });
  }

  absl::StatusOr<std::vector<Worker>> ListWorkers(const std::string& after, int limit,
                                                  Time now) override {
    return Read<std::vector<Worker>>([&](Database& db) -> absl::StatusOr<std::vector<Worker>> {
      std::mt19937_64 unused;
      return sqlite::ListWorkers(Context{db, policy_, now, unused}, after, limit);
    });
  }
  absl::StatusOr<Worker> DrainWorker(const std::string& worker_id, bool terminate,
                                     Time now) override {
    return Write<Worker>(
        now, [&](const Context& c) { return sqlite::DrainWorker(c, worker_id, terminate); });
  }
  absl::Status PauseQueue(const std::string& reason, Time now) override {
    return WriteStatus(now, [&](const Context& c) {
      c.db.Execute(
          "INSERT INTO queue_pause (id, reason, create_time) VALUES (1, ?, ?)"
          " ON CONFLICT (id) DO UPDATE SET reason = excluded.reason",
          reason, c.now);
      return absl::OkStatus();
    });
  }
  absl::Status ResumeQueue() override {
    return writer_.Run([](Database& db) {
      db.Execute("DELETE FROM queue_pause");
      return absl::OkStatus();
    });
  }
  absl::StatusOr<TenantUsage> Usage(const std::string& tenant) override {
    return Read<TenantUsage>(
        [&](Database& db) -> absl::StatusOr<TenantUsage> { return sqlite::ReadUsage(db, tenant); });
  }
  absl::StatusOr<TenantUsage> SetQuota(const TenantQuota& quota) override {
    return RunFor<TenantUsage>(writer_, [&](Database& db) -> absl::StatusOr<TenantUsage> {
      return sqlite::SetQuota(db, quota);
    });
  }
  absl::StatusOr<SweepReport> Sweep(Time now) override {
    return Write<SweepReport>(now, [&](const Context& c) { return sqlite::Sweep(c); });
  }
  absl::StatusOr<StoreStats> Stats(Time now) override {
    return Read<StoreStats>([&](Database& db) -> absl::StatusOr<StoreStats> {
      return sqlite::Stats(db, policy_, now);
    });
  }
  absl::StatusOr<std::vector<Job>> ListAcross(JobsAcross which, int limit) override {
    return Read<std::vector<Job>>([&](Database& db) -> absl::StatusOr<std::vector<Job>> {
      return sqlite::ListAcross(db, which, limit);
    });
  }
  absl::StatusOr<std::vector<Garbage>> ListGarbage(int limit) override {
    return Read<std::vector<Garbage>>([&](Database& db) -> absl::StatusOr<std::vector<Garbage>> {
      sqlite::Rows rows = db.Query(
          "SELECT tenant, job_uid FROM garbage ORDER BY create_time, job_uid LIMIT ?", limit);
      std::vector<Garbage> garbage;
      while (rows.Next()) garbage.push_back({rows.Text(0), rows.Text(1)});
      return garbage;
    });
  }
  absl::Status ForgetGarbage(const Garbage& garbage) override {
    return writer_.Run([&](Database& db) {
      db.Execute("DELETE FROM garbage WHERE job_uid = ?", garbage.job_uid);
      return absl::OkStatus();
    });
  }
  absl::StatusOr<std::vector<JobReferences>> ListReferences(const std::string& after,
                                                            int limit) override {
    return Read<std::vector<JobReferences>>(
        [&](Database& db) -> absl::StatusOr<std::vector<JobReferences>> {
          return sqlite::ListReferences(db, after, limit);
        });
  }
  absl::Status Ping() override {
    return readers_.Run([](Database& db) {
      db.Execute("SELECT n FROM job_counts WHERE state = 1");
      return absl::OkStatus();
    });
  }

 private:
  template <typename Result, typename Body>
  absl::StatusOr<Result> Read(const Body& body) {
    return RunFor<Result>(readers_, body);
  }
  template <typename Result, typename Body>
  absl::StatusOr<Result> Write(Time now, const Body& body) {
    std::vector<JobKey> changed;
    auto result = RunFor<Result>(writer_, [&](Database& db) {
      auto value = body(Context{db, policy_, now, random_});
      changed = db.TakeChanged();
      return value;
    });
    if (result.ok()) Tell(changed);
    return result;
  }
  template <typename Body>
  absl::Status WriteStatus(Time now, const Body& body) {
    std::vector<JobKey> changed;
    absl::Status status = writer_.Run([&](Database& db) {
      absl::Status done = body(Context{db, policy_, now, random_});
      changed = db.TakeChanged();
      return done;
    });
    if (status.ok()) Tell(changed);
    return status;
  }
  void Tell(const std::vector<JobKey>& changed) const {
    for (const JobKey& job : changed) {
      if (on_changed_) on_changed_(job);
    }
  }

  sqlite::DataDirLock lock_;
  const JobPolicy policy_;
  const ChangeObserver on_changed_;
  std::mt19937_64 random_;  // only on the writer's thread
  sqlite::ReaderPool readers_;
  sqlite::Checkpointer checkpointer_;
  sqlite::GroupCommitWriter writer_;  // last: its thread stops first
};

}  // namespace

absl::StatusOr<std::unique_ptr<ViewedJobStore>> OpenSqliteJobStore(const SqliteOptions& options) {
  auto lock = sqlite::DataDirLock::Acquire(options.data_dir);
  if (!lock.ok()) return lock.status();
  std::string path = options.data_dir + "/quantry.db";
  auto writer = Database::Open(path, false);
  if (!writer.ok()) return writer.status();
  absl::Status migrated = sqlite::Migrate(**writer);
  if (!migrated.ok()) return migrated;
  auto checkpointer = Database::Open(path, false);
  if (!checkpointer.ok()) return checkpointer.status();
  std::vector<std::unique_ptr<Database>> readers;
  for (int i = 0; i < std::max(options.readers, 1); ++i) {
    auto reader = Database::Open(path, true);
    if (!reader.ok()) return reader.status();
    readers.push_back(*std::move(reader));
  }
  return std::make_unique<SqliteJobStore>(*std::move(lock), options.policy, options.on_changed,
                                          *std::move(writer), *std::move(checkpointer),
                                          std::move(readers));
}

}  // namespace quantry::server
