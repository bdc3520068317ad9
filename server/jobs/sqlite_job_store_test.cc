#include "server/jobs/sqlite_job_store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "server/jobs/sqlite/schema.h"
#include "tests/conformance/job_store_suite.h"
#include "tests/conformance/job_store_upgrade.h"

namespace quantry::server {
namespace {

class TempDir {
 public:
  TempDir() {
    std::string path = std::filesystem::temp_directory_path() / "quantry_store_XXXXXX";
    path_ = mkdtemp(path.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::unique_ptr<JobStore> MustOpen(const std::string& data_dir, const JobPolicy& policy = {}) {
  auto store = OpenSqliteJobStore({data_dir, policy});
  EXPECT_EQ(Outcome(store), "OK");
  return store.ok() ? *std::move(store) : nullptr;
}

class SqliteInstance : public StoreInstance {
 public:
  explicit SqliteInstance(const JobPolicy& policy) : policy_(policy) { Reopen(); }
  JobStore& store() override { return *store_; }
  void Reopen() override {
    store_ = nullptr;
    store_ = MustOpen(dir_.path() + "/data", policy_);
  }

 private:
  TempDir dir_;
  JobPolicy policy_;
  std::unique_ptr<JobStore> store_;
};

const JobStoreFactory kFile = {
    "File", [](const JobPolicy& policy) { return std::make_unique<SqliteInstance>(policy); }};
INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreSuite, testing::Values(kFile), FactoryName);
INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreTurns, testing::Values(kFile), FactoryName);
INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreTwins, testing::Values(kFile), FactoryName);

constexpr Time kNow = Time(std::chrono::hours(480'000));

SubmitRequest Request(const std::string& id) {
  SubmitRequest request;
  request.key = {"acme", id};
  request.uid = NewUuid4();
  request.spec.mutable_method()->mutable_rtn();
  return request;
}

// Submits job-0000, job-0001, ... until one fails; returns how many did not.
int SubmitUntilRefused(JobStore& store, int first, std::string* refusal) {
  for (int i = first;; ++i) {
    SubmitRequest request = Request("job-" + std::to_string(i));
    request.display_name = std::string(4000, 'x');
    auto result = store.Submit(request, kNow);
    if (result.ok()) continue;
    *refusal = Outcome(result);
    return i;
  }
}

TEST(SqliteJobStoreTest, ASecondServerIsRefusedAndToldWhoTheFirstIs) {
  TempDir dir;
  auto first = MustOpen(dir.path());
  auto second = OpenSqliteJobStore({dir.path(), {}});
  EXPECT_EQ(Outcome(second), "DATA_DIR_LOCKED");
  EXPECT_EQ(MetadataOf(second.status(), "pid"), std::to_string(getpid()));
  first = nullptr;
  EXPECT_EQ(Outcome(OpenSqliteJobStore({dir.path(), {}})), "OK");
}

// Watches learn of it, and metrics count it: no call names these jobs.
TEST(SqliteJobStoreTest, ARestartedWorkersJobsAreTold) {
  TempDir dir;
  std::vector<std::string> told;
  auto store = *OpenSqliteJobStore(
      {.data_dir = dir.path(), .policy = {}, .on_changed = [&](const JobKey& job) {
         told.push_back(job.id);
       }});
  v1::WorkerInfo worker;
  worker.set_worker_id("w1");
  worker.set_incarnation("first");
  worker.add_methods("rtn");
  ASSERT_EQ(Outcome(store->RegisterWorker(worker, "s1", kNow)), "OK");
  ASSERT_EQ(Outcome(store->Submit(Request("job-one"), kNow)), "OK");
  ASSERT_TRUE((*store->Acquire({"s1", NewUuid4()}, kNow)).has_value());
  worker.set_incarnation("second");
  ASSERT_EQ(Outcome(store->RegisterWorker(worker, "s2", kNow)), "OK");
  EXPECT_EQ(told, std::vector<std::string>{"job-one"});
}

TEST(SqliteJobStoreTest, TheDataFolderIsPrivate) {
  TempDir dir;
  auto store = MustOpen(dir.path() + "/new/folder");
  struct stat info {};
  ASSERT_EQ(stat((dir.path() + "/new/folder").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST(SqliteJobStoreTest, ADatabaseOfANewerVersionIsRefused) {
  TempDir dir;
  MustOpen(dir.path());
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open((dir.path() + "/quantry.db").c_str(), &db), SQLITE_OK);
  sqlite3_exec(db, "PRAGMA user_version=99", nullptr, nullptr, nullptr);
  sqlite3_close(db);
  auto store = OpenSqliteJobStore({dir.path(), {}});
  EXPECT_EQ(Outcome(store), "STORE_UNAVAILABLE");
  EXPECT_EQ(MetadataOf(store.status(), "schema"), "99");
}

int64_t NumberOf(sqlite::Database& db, const char* sql) {
  sqlite::Rows rows = db.Query(sql);
  return rows.Next() ? rows.Int(0) : -1;
}

// Copies what the database `made` holds into one of the first schema.
void CopyIntoTheFirst(sqlite::Database& first) {
  for (const std::string table :
       {"jobs", "job_payloads", "job_labels", "job_progress", "job_checkpoints", "job_losses",
        "job_events", "queue", "artifacts", "workers", "meta"}) {
    sqlite::Rows names =
        first.Query("SELECT group_concat(name) FROM pragma_table_info(?, 'main')", table);
    ASSERT_TRUE(names.Next());
    const std::string columns = names.Text(0);
    first.Script("INSERT INTO main." + table + " (" + columns + ") SELECT " + columns +
                 " FROM made." + table);
  }
}

TEST(SqliteJobStoreTest, TheFirstSchemaIsBroughtForwardStepByStep) {
  TempDir made;
  TempDir first;
  UpgradeCase::Fill(*MustOpen(made.path()));
  {
    auto opened = sqlite::Database::Open(first.path() + "/quantry.db", false);
    ASSERT_EQ(Outcome(opened), "OK");
    sqlite::Database& db = **opened;
    ASSERT_EQ(Outcome(sqlite::MigrateTo(db, 1)), "OK");
    db.Script("ATTACH '" + made.path() + "/quantry.db' AS made");
    CopyIntoTheFirst(db);
    const int64_t newest = NumberOf(db, "PRAGMA made.user_version");
    ASSERT_GT(newest, 1) << db.status();
    for (int version = 2; version <= newest; ++version) {
      ASSERT_EQ(Outcome(sqlite::MigrateTo(db, version)), "OK") << version;
      EXPECT_EQ(NumberOf(db, "PRAGMA main.user_version"), version);
      EXPECT_EQ(NumberOf(db, "SELECT count(*) FROM main.jobs"), 6) << version;
    }
  }
  UpgradeCase::ExpectEverythingWorks(*MustOpen(first.path()));
}

TEST(SqliteJobStoreTest, AFileThatIsNoDatabaseIsRefused) {
  TempDir dir;
  std::ofstream(dir.path() + "/quantry.db") << std::string(4096, 'x');
  EXPECT_EQ(Outcome(OpenSqliteJobStore({dir.path(), {}})), "STORE_UNAVAILABLE");
}

TEST(SqliteJobStoreTest, AnUnusableFolderIsRefused) {
  EXPECT_EQ(Outcome(OpenSqliteJobStore({"/proc/none", {}})), "STORE_UNAVAILABLE");
}

// Child: submits and reports each acknowledged id through the pipe.
[[noreturn]] void SubmitForever(const std::string& dir, int pipe) {
  auto store = OpenSqliteJobStore({dir, {}});
  for (int i = 0; store.ok(); ++i) {
    if (!(*store)->Submit(Request("job-" + std::to_string(i)), kNow).ok()) break;
    if (write(pipe, &i, sizeof(i)) != sizeof(i)) break;
  }
  _exit(1);
}

TEST(SqliteJobStoreTest, AcknowledgedSubmitsSurviveSigkill) {
  TempDir dir;
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) SubmitForever(dir.path(), fds[1]);
  close(fds[1]);
  int last = -1;
  while (last < 100 && read(fds[0], &last, sizeof(last)) == sizeof(last)) {
  }
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  while (read(fds[0], &last, sizeof(last)) == sizeof(last)) {
  }
  close(fds[0]);
  ASSERT_GE(last, 100);
  auto store = MustOpen(dir.path());
  for (int i = 0; i <= last; ++i) {
    EXPECT_EQ(Outcome(store->Get({"acme", "job-" + std::to_string(i)})), "OK") << i;
  }
}

// Everything acknowledged is there, what was refused is not, and it goes on.
void ExpectWhole(JobStore& store, int acknowledged) {
  for (int i = 0; i < acknowledged; ++i) {
    EXPECT_EQ(Outcome(store.Get({"acme", "job-" + std::to_string(i)})), "OK") << i;
  }
  EXPECT_EQ(Outcome(store.Get({"acme", "job-" + std::to_string(acknowledged)})), "JOB_NOT_FOUND");
  EXPECT_EQ(store.Stats(kNow)->jobs.at(JobState::kQueued), acknowledged);
  EXPECT_EQ(Outcome(store.Ping()), "OK");
}

TEST(SqliteJobStoreTest, AFullDiskRefusesWritesAndLosesNothing) {
  TempDir dir;
  if (mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=4m") != 0) {
    GTEST_SKIP() << "cannot mount a tmpfs here";
  }
  {
    auto store = MustOpen(dir.path());
    std::string refusal;
    int acknowledged = SubmitUntilRefused(*store, 0, &refusal);
    EXPECT_EQ(refusal, "DISK_FULL");
    EXPECT_GT(acknowledged, 50);
    ExpectWhole(*store, acknowledged);
    store = nullptr;
    ASSERT_EQ(mount("", dir.path().c_str(), "", MS_REMOUNT, "size=20m"), 0);
    store = MustOpen(dir.path());
    ExpectWhole(*store, acknowledged);
    EXPECT_EQ(Outcome(store->Submit(Request("afterwards"), kNow)), "OK");
  }
  umount2(dir.path().c_str(), MNT_DETACH);
}

TEST(SqliteJobStoreTest, AFailedWriteRefusesThatCallAndLosesNothing) {
  TempDir dir;
  auto store = MustOpen(dir.path());
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small{1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string refusal;
  int acknowledged = SubmitUntilRefused(*store, 0, &refusal);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(refusal, "STORE_UNAVAILABLE");
  EXPECT_GT(acknowledged, 5);
  ExpectWhole(*store, acknowledged);
  EXPECT_EQ(Outcome(store->Submit(Request("afterwards"), kNow)), "OK");
}

}  // namespace
}  // namespace quantry::server
