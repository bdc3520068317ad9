#include "server/jobs/postgres_job_store.h"

#include <atomic>
#include <csignal>
#include <functional>
#include <latch>
#include <thread>

#include "server/jobs/postgres/conninfo.h"
#include "server/jobs/postgres/schema.h"
#include "tests/conformance/job_store_suite.h"
#include "tests/conformance/job_store_upgrade.h"
#include "tests/support/postgres_server.h"

namespace quantry::server {
namespace {

using quantry::testing::PostgresServer;

constexpr Time kNow = Time(std::chrono::hours(480'000));

std::unique_ptr<JobStore> MustOpen(const std::string& uri, const JobPolicy& policy = {}) {
  auto conninfo = postgres::MakeConninfo(uri, "");
  EXPECT_EQ(Outcome(conninfo), "OK");
  auto store = OpenPostgresJobStore({.conninfo = conninfo.value_or(""), .policy = policy});
  EXPECT_EQ(Outcome(store), "OK") << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

class PostgresInstance : public StoreInstance {
 public:
  explicit PostgresInstance(const JobPolicy& policy) : policy_(policy) { Reopen(); }
  JobStore& store() override { return *store_; }
  void Reopen() override {
    store_ = nullptr;
    store_ = MustOpen(uri_, policy_);
  }

 private:
  JobPolicy policy_;
  std::string uri_ = PostgresServer::Shared().NewUri();
  std::unique_ptr<JobStore> store_;
};

const JobStoreFactory kServer = {
    "Server", [](const JobPolicy& policy) { return std::make_unique<PostgresInstance>(policy); }};
INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreSuite, ::testing::Values(kServer), FactoryName);
INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreTurns, ::testing::Values(kServer), FactoryName);
INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreTwins, ::testing::Values(kServer), FactoryName);

SubmitRequest Request(const std::string& id) {
  SubmitRequest request;
  request.key = {"acme", id};
  request.uid = NewUuid4();
  request.request_id = request.uid;
  request.request_hash = "hash";
  request.spec.mutable_method()->mutable_rtn();
  return request;
}

std::string RegisterWorker(JobStore& store, const std::string& id) {
  v1::WorkerInfo worker;
  worker.set_worker_id(id);
  worker.set_incarnation(id);
  worker.add_methods("rtn");
  EXPECT_EQ(Outcome(store.RegisterWorker(worker, "session of " + id, kNow)), "OK");
  return "session of " + id;
}

// Calls call(i) on `threads` threads at once.
void InParallel(int threads, const std::function<void(int)>& call) {
  std::latch ready(threads);
  std::vector<std::jthread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&, i] {
      ready.arrive_and_wait();
      call(i);
    });
  }
}

TEST(PostgresJobStoreTest, ServersThatStartAtOnceMakeOneSchema) {
  const std::string uri = PostgresServer::Shared().NewUri();
  InParallel(6, [&](int i) {
    auto store = MustOpen(uri);
    EXPECT_EQ(Outcome(store->Submit(Request("job-" + std::to_string(i)), kNow)), "OK");
  });
  EXPECT_EQ(MustOpen(uri)->Stats(kNow)->depth, 6);
}

TEST(PostgresJobStoreTest, ASchemaOfANewerVersionIsRefusedAndLeftAlone) {
  PostgresServer& server = PostgresServer::Shared();
  const std::string uri = server.UriOf("newer");
  MustOpen(uri);
  server.Execute("UPDATE newer.quantry_schema SET version = 99");
  auto store = OpenPostgresJobStore({postgres::MakeConninfo(uri, "").value(), {}});
  EXPECT_EQ(Outcome(store), "STORE_UNAVAILABLE");
  EXPECT_EQ(MetadataOf(store.status(), "schema"), "99");
  EXPECT_EQ(server.Execute("SELECT version FROM newer.quantry_schema"), "99");
}

// Copies what `made`, of the newest schema, holds into `first`, of the first one.
constexpr const char* kIntoTheFirst = R"sql(
SET search_path = first;
DO $$ DECLARE name text; columns text; BEGIN
  FOREACH name IN ARRAY ARRAY['jobs', 'job_payloads', 'job_labels', 'job_progress',
      'job_checkpoints', 'job_losses', 'job_events', 'queue', 'artifacts', 'workers', 'meta'] LOOP
    SELECT string_agg(quote_ident(column_name), ',') INTO columns
      FROM information_schema.columns WHERE table_schema = 'first' AND table_name = name;
    EXECUTE format('INSERT INTO first.%I (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM made.%I',
                   name, columns, columns, name);
  END LOOP;
  PERFORM setval(pg_get_serial_sequence('first.jobs', 'pk'), max(pk)) FROM first.jobs;
END $$
)sql";

void MigrateTo(const std::string& uri, int version) {
  auto db = postgres::Database::Open(postgres::MakeConninfo(uri, "").value());
  ASSERT_EQ(Outcome(db), "OK");
  ASSERT_EQ(Outcome(postgres::MigrateTo(**db, version)), "OK") << version;
}

TEST(PostgresJobStoreTest, TheFirstSchemaIsBroughtForwardStepByStep) {
  PostgresServer& server = PostgresServer::Shared();
  UpgradeCase::Fill(*MustOpen(server.UriOf("made")));
  const std::string uri = server.UriOf("first");
  MigrateTo(uri, 1);
  server.Execute(kIntoTheFirst);
  const int newest = std::stoi(server.Execute("SELECT version FROM made.quantry_schema"));
  for (int version = 2; version <= newest; ++version) {
    MigrateTo(uri, version);
    EXPECT_EQ(server.Execute("SELECT version FROM first.quantry_schema"), std::to_string(version));
    EXPECT_EQ(server.Execute("SELECT count(*) FROM first.jobs"), "6");
  }
  UpgradeCase::ExpectEverythingWorks(*MustOpen(uri));
}

TEST(PostgresJobStoreTest, ARoleWithoutRightsToTheSchemaServes) {
  PostgresServer& server = PostgresServer::Shared();
  const std::string uri = server.UriOf("granted");
  MustOpen(uri);
  server.Execute(
      "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA granted TO app;"
      " GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA granted TO app");
  std::string as_app = uri;
  as_app.replace(as_app.find("quantry@"), 8, "app@");
  auto store = MustOpen(as_app);
  EXPECT_EQ(Outcome(store->Submit(Request("job-one"), kNow)), "OK");
  const std::string session = RegisterWorker(*store, "w");
  EXPECT_TRUE(store->Acquire({session, NewUuid4()}, kNow).value().has_value());
  EXPECT_EQ(Outcome(store->Sweep(kNow)), "OK");
}

TEST(PostgresJobStoreTest, AServerThatIsNotThereIsNamedWithoutThePassword) {
  auto store = OpenPostgresJobStore({"host='/nowhere' user='me' password='secret'", {}});
  EXPECT_EQ(Outcome(store), "STORE_UNAVAILABLE");
  EXPECT_NE(store.status().message().find("/nowhere"), std::string::npos) << store.status();
  EXPECT_EQ(store.status().ToString().find("secret"), std::string::npos);
}

TEST(PostgresJobStoreTest, ATextWithNulIsRefused) {
  auto store = MustOpen(PostgresServer::Shared().NewUri());
  SubmitRequest request = Request("job-one");
  request.display_name = std::string("a\0b", 3);
  EXPECT_EQ(Outcome(store->Submit(request, kNow)), "INVALID_ARGUMENT");
  EXPECT_EQ(Outcome(store->Get(request.key)), "JOB_NOT_FOUND");
}

TEST(PostgresJobStoreTest, TwoServersClaimEachJobOnce) {
  const std::string uri = PostgresServer::Shared().NewUri();
  std::unique_ptr<JobStore> stores[] = {MustOpen(uri), MustOpen(uri)};
  for (int i = 0; i < 100; ++i) {
    SubmitRequest request = Request("job-" + std::to_string(i));
    request.key.tenant = "tenant-" + std::to_string(i % 40);
    ASSERT_EQ(Outcome(stores[0]->Submit(request, kNow)), "OK");
  }
  std::mutex mutex;
  std::set<std::string> claimed;
  int claims = 0;
  InParallel(8, [&](int i) {
    JobStore& store = *stores[i % 2];
    const std::string session = RegisterWorker(store, "w" + std::to_string(i));
    while (true) {
      auto grant = store.Acquire({session, NewUuid4()}, kNow);
      ASSERT_EQ(Outcome(grant), "OK");
      EXPECT_EQ(Outcome(store.Sweep(kNow)), "OK");
      if (!*grant) return;
      std::lock_guard lock(mutex);
      ++claims;
      claimed.insert((*grant)->job.key.id);
    }
  });
  EXPECT_EQ(claims, 100);
  EXPECT_EQ(claimed.size(), 100u);
}

TEST(PostgresJobStoreTest, OneAcquireIdGivesOneJobWhateverServerIsAsked) {
  const std::string uri = PostgresServer::Shared().NewUri();
  std::unique_ptr<JobStore> stores[] = {MustOpen(uri), MustOpen(uri)};
  for (int i = 0; i < 20; ++i) stores[0]->Submit(Request("job-" + std::to_string(i)), kNow).value();
  const std::string session = RegisterWorker(*stores[0], "w");
  std::mutex mutex;
  std::set<std::string> given;
  InParallel(8, [&](int i) {
    auto grant = stores[i % 2]->Acquire({session, "the same"}, kNow);
    ASSERT_TRUE(grant.ok() && *grant) << grant.status();
    std::lock_guard lock(mutex);
    given.insert((*grant)->job.key.id);
  });
  EXPECT_EQ(given.size(), 1u);
}

TEST(PostgresJobStoreTest, QuotasHoldWhenManyServersCountAtOnce) {
  const std::string uri = PostgresServer::Shared().NewUri();
  std::unique_ptr<JobStore> stores[] = {MustOpen(uri), MustOpen(uri)};
  ASSERT_EQ(Outcome(stores[0]->SetQuota({.tenant = "acme", .max_queued = 7, .max_running = 3})),
            "OK");
  std::atomic<int> submitted{0};
  InParallel(16, [&](int i) {
    const auto result = stores[i % 2]->Submit(Request("job-" + std::to_string(i)), kNow);
    if (result.ok()) ++submitted;
    EXPECT_TRUE(result.ok() || Outcome(result) == "QUOTA_QUEUED") << result.status();
  });
  EXPECT_EQ(submitted, 7);
  std::atomic<int> running{0};
  InParallel(8, [&](int i) {
    JobStore& store = *stores[i % 2];
    const std::string session = RegisterWorker(store, "w" + std::to_string(i));
    auto grant = store.Acquire({session, NewUuid4()}, kNow);
    ASSERT_EQ(Outcome(grant), "OK");
    if (*grant) ++running;
  });
  EXPECT_EQ(running, 3);
}

TEST(PostgresJobStoreTest, TheSubmitRateHoldsWhenManyServersCountAtOnce) {
  const std::string uri = PostgresServer::Shared().NewUri();
  std::unique_ptr<JobStore> stores[] = {MustOpen(uri), MustOpen(uri)};
  ASSERT_EQ(Outcome(stores[0]->SetQuota({.tenant = "acme", .max_submits_per_minute = 7})), "OK");
  std::atomic<int> submitted{0};
  InParallel(16, [&](int i) {
    const auto result = stores[i % 2]->Submit(Request("job-" + std::to_string(i)), kNow);
    if (result.ok()) ++submitted;
    EXPECT_TRUE(result.ok() || Outcome(result) == "QUOTA_SUBMIT_RATE") << result.status();
  });
  EXPECT_EQ(submitted, 7);
}

// Waits until the first column of the first row of `sql` is `wanted`.
void Await(const PostgresServer& server, const std::string& sql, const std::string& wanted) {
  std::string got;
  for (int i = 0; i < 1000 && (got = server.Execute(sql)) != wanted; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(got, wanted) << sql;
}

// A claim and a submit that shares the claimed job's result both wait for the
// tenant's quota. Nobody looks for deadlocks here, so one would end by the
// store's timeout for locks.
TEST(PostgresJobStoreTest, AClaimAndASubmitThatSharesItsJobLockInOneOrder) {
  PostgresServer& server = PostgresServer::Shared();
  const std::string uri = server.UriOf("ordered") + "%20-cdeadlock_timeout%3D1h";
  std::unique_ptr<JobStore> stores[] = {MustOpen(uri), MustOpen(uri)};
  const TenantQuota quota{.tenant = "acme", .max_queued = 10, .max_running = 5};
  ASSERT_EQ(Outcome(stores[0]->SetQuota(quota)), "OK");
  SubmitRequest request = Request("first");
  request.spec_digest = "digest";
  request.engine_version = "1";
  request.reuse_result = true;
  ASSERT_EQ(Outcome(stores[0]->Submit(request, kNow)), "OK");
  const std::string session = RegisterWorker(*stores[0], "w");

  server.Execute("CREATE TABLE ordered.go (n int)");
  std::jthread holder([&] {
    server.Execute(
        "DO $$ BEGIN PERFORM 1 FROM ordered.quotas FOR UPDATE;"
        " WHILE NOT EXISTS (SELECT 1 FROM ordered.go) LOOP PERFORM pg_sleep(0.02); END LOOP;"
        " END $$");
  });
  Await(server, "SELECT count(*) FROM (SELECT 1 FROM ordered.quotas FOR UPDATE SKIP LOCKED) q",
        "0");
  const std::string waiting =
      "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
      " AND query LIKE '%FROM quotas%'";
  std::jthread claim([&] {
    auto grant = stores[0]->Acquire({session, NewUuid4()}, kNow);
    ASSERT_EQ(Outcome(grant), "OK") << grant.status();
    ASSERT_TRUE(grant->has_value());
    EXPECT_EQ((*grant)->job.key.id, "first");
  });
  Await(server, waiting, "1");
  std::jthread submit([&] {
    SubmitRequest twin = request;
    twin.key.id = "second";
    twin.uid = twin.request_id = NewUuid4();
    const auto result = stores[1]->Submit(twin, kNow);
    ASSERT_EQ(Outcome(result), "OK") << result.status();
    EXPECT_EQ(result->reuse, Reuse::kJoined);
  });
  Await(server, waiting, "2");
  server.Execute("INSERT INTO ordered.go VALUES (1)");
}

// Two claims find both tenants full, each the other one first. They are not told
// so before they wait for the quotas: a holder lowers those meanwhile.
TEST(PostgresJobStoreTest, ClaimsThatMeetFullTenantsInOppositeOrderDoNotWaitForEachOther) {
  PostgresServer& server = PostgresServer::Shared();
  const std::string uri = server.UriOf("opposite") + "%20-cdeadlock_timeout%3D1h";
  std::unique_ptr<JobStore> stores[] = {MustOpen(uri), MustOpen(uri)};
  for (const char* tenant : {"acme", "beta"}) {
    ASSERT_EQ(Outcome(stores[0]->SetQuota({.tenant = tenant, .max_running = 2})), "OK");
    for (int i = 0; i < 3; ++i) {
      SubmitRequest request = Request("job-" + std::to_string(i));
      request.key.tenant = tenant;
      ASSERT_EQ(Outcome(stores[0]->Submit(request, kNow)), "OK");
    }
  }
  const std::string session = RegisterWorker(*stores[0], "w");
  for (const char* tenant : {"acme", "beta"}) {  // one of each runs
    const auto grant = stores[0]->Acquire({session, NewUuid4()}, kNow);
    ASSERT_TRUE(grant.ok() && *grant) << grant.status();
    ASSERT_EQ((*grant)->job.key.tenant, tenant);
  }

  server.Execute("CREATE TABLE opposite.go (n int)");
  std::jthread holder([&] {
    server.Execute(
        "DO $$ BEGIN UPDATE opposite.quotas SET max_running = 1;"
        " WHILE NOT EXISTS (SELECT 1 FROM opposite.go) LOOP PERFORM pg_sleep(0.02); END LOOP;"
        " END $$");
  });
  Await(server, "SELECT count(*) FROM (SELECT 1 FROM opposite.quotas FOR UPDATE SKIP LOCKED) q",
        "0");
  const std::string waiting =
      "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
      " AND query LIKE '%FROM quotas%'";
  const auto find_nothing = [&](JobStore& store) {
    const auto grant = store.Acquire({session, NewUuid4()}, kNow);
    ASSERT_EQ(Outcome(grant), "OK") << grant.status();
    EXPECT_FALSE(grant->has_value());
  };
  std::jthread one([&] { find_nothing(*stores[0]); });
  Await(server, waiting, "1");
  server.Execute(
      "UPDATE opposite.jobs SET last_claim = last_claim + 1"
      " WHERE tenant = 'acme' AND last_claim IS NOT NULL");  // beta's turn
  std::jthread other([&] { find_nothing(*stores[1]); });
  Await(server, waiting, "2");
  server.Execute("INSERT INTO opposite.go VALUES (1)");
}

TEST(PostgresJobStoreTest, TheSweepFoldsTheCounters) {
  PostgresServer& server = PostgresServer::Shared();
  auto store = MustOpen(server.UriOf("folded"));
  for (int i = 0; i < 5; ++i) store->Submit(Request("job-" + std::to_string(i)), kNow).value();
  EXPECT_EQ(server.Execute("SELECT count(*) FROM folded.job_count_changes"), "5");
  ASSERT_EQ(Outcome(store->Sweep(kNow)), "OK");
  EXPECT_EQ(server.Execute("SELECT count(*) FROM folded.job_count_changes"), "0");
  EXPECT_EQ(store->Stats(kNow)->depth, 5);
}

TEST(PostgresJobStoreTest, StatsTellWhatHoldsVacuumBack) {
  PostgresServer& server = PostgresServer::Shared();
  auto store = MustOpen(server.UriOf("vacuum"));
  std::jthread holder([&] { server.Execute("SELECT pg_sleep(5)"); });  // with one snapshot
  Await(server,
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(5)%'"
        " AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()",
        "1");
  const std::string session = RegisterWorker(*store, "w");
  for (int i = 0; i < 30; ++i) {
    ASSERT_EQ(Outcome(store->Submit(Request("job-" + std::to_string(i)), kNow)), "OK");
    ASSERT_EQ(Outcome(store->Acquire({session, NewUuid4()}, kNow)), "OK");
  }
  EXPECT_GE(store->Stats(kNow)->oldest_snapshot_age, 60);
  holder.join();
  EXPECT_LT(store->Stats(kNow)->oldest_snapshot_age, 60);
  // PostgreSQL counts what is dead a little later.
  int64_t dead = 0;
  for (int i = 0; i < 100 && dead == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    dead = store->Stats(kNow)->dead_rows;
  }
  EXPECT_GT(dead, 0);
}

TEST(PostgresJobStoreTest, ASweepIsLeftToTheServerThatSweeps) {
  PostgresServer& server = PostgresServer::Shared();
  auto store = MustOpen(server.UriOf("swept"));
  std::jthread other([&] {
    const std::string key = "(hashtextextended('quantry sweep swept', 0))";
    server.Execute("SELECT pg_advisory_lock" + key + "; SELECT pg_sleep(2);" +
                   " SELECT pg_advisory_unlock" + key);
  });
  // Until it has the lock, and until it has given it back.
  for (const bool left : {true, false}) {
    absl::StatusOr<SweepReport> report = store->Sweep(kNow);
    for (int i = 0; i < 500 && report.ok() && report->left_to_another != left; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      report = store->Sweep(kNow);
    }
    ASSERT_EQ(Outcome(report), "OK");
    EXPECT_EQ(report->left_to_another, left);
  }
}

TEST(PostgresJobStoreTest, AnOutageFailsCallsAndEndsByItself) {
  PostgresServer server;
  auto store = MustOpen(server.NewUri());
  const std::string session = RegisterWorker(*store, "w");
  store->Submit(Request("before"), kNow).value();
  const LeaseToken lease{session, {"acme", "before"}, 1};
  ASSERT_TRUE(store->Acquire({session, NewUuid4()}, kNow).value().has_value());
  server.Stop(SIGINT);
  EXPECT_EQ(Outcome(store->Get({"acme", "before"})), "STORE_UNAVAILABLE");
  const auto refused = store->Submit(Request("meanwhile"), kNow);
  EXPECT_EQ(Outcome(refused), "STORE_UNAVAILABLE");
  EXPECT_NE(refused.status().message().find("cannot be reached"), std::string::npos)
      << refused.status();
  EXPECT_EQ(Outcome(store->Ping()), "STORE_UNAVAILABLE");
  server.Start();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(Outcome(store->Get({"acme", "before"})), "OK") << "the first call after it";
  EXPECT_EQ(Outcome(store->Get({"acme", "meanwhile"})), "JOB_NOT_FOUND");
  CompleteRequest done;
  done.lease = lease;
  done.manifest_sha256 = "sha";
  EXPECT_EQ(Outcome(store->Complete(done, kNow)), "OK");
}

TEST(PostgresJobStoreTest, ARestartInBetweenIsNotSeen) {
  PostgresServer server;
  auto store = MustOpen(server.NewUri());
  store->Submit(Request("before"), kNow).value();
  server.Stop(SIGINT);
  server.Start();
  EXPECT_EQ(Outcome(store->Submit(Request("after"), kNow)), "OK");
  EXPECT_EQ(Outcome(store->Get({"acme", "before"})), "OK");
}

// Repeats what was not acknowledged, as a client does.
void SubmitUntilAcknowledged(JobStore& store, const std::string& id, std::atomic<int>& faults) {
  const SubmitRequest request = Request(id);
  auto result = store.Submit(request, kNow);
  while (Outcome(result) == "STORE_UNAVAILABLE") {
    ++faults;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    result = store.Submit(request, kNow);
  }
  ASSERT_EQ(Outcome(result), "OK") << result.status();
  EXPECT_EQ(result->job.uid, request.uid);
}

// 120 submits while `disturb` runs again and again.
void ExpectNothingLost(PostgresServer& server, const std::function<void()>& disturb) {
  auto store = MustOpen(server.NewUri());
  std::atomic<int> left{120};
  std::atomic<int> faults{0};
  {
    std::vector<std::jthread> clients;
    for (int client = 0; client < 4; ++client) {
      clients.emplace_back([&] {
        for (int i = --left; i >= 0; i = --left) {
          SubmitUntilAcknowledged(*store, "job-" + std::to_string(i), faults);
        }
      });
    }
    while (left > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(80));
      disturb();
    }
  }
  ::testing::Test::RecordProperty("faults", faults);
  // The last fault may have left several dead connections: each costs a call.
  auto stats = store->Stats(kNow);
  for (int i = 0; i < 20 && !stats.ok(); ++i) stats = store->Stats(kNow);
  ASSERT_EQ(Outcome(stats), "OK");
  EXPECT_EQ(stats->jobs.at(JobState::kQueued), 120);
  ListQuery all;
  all.tenant = "acme";
  all.limit = 1000;
  auto page = store->List(all);
  ASSERT_EQ(Outcome(page), "OK");
  EXPECT_EQ(page->jobs.size(), 120u);
  for (const Job& job : page->jobs) EXPECT_EQ(job.last_sequence, 1);
}

TEST(PostgresJobStoreTest, KilledBackendsLoseNothing) {
  PostgresServer& server = PostgresServer::Shared();
  ExpectNothingLost(server, [&] {
    server.Execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = 'quantryd'");
  });
}

TEST(PostgresJobStoreTest, ACrashedServerLosesNothingAcknowledged) {
  PostgresServer server;
  int crashes = 0;
  ExpectNothingLost(server, [&] {
    if (++crashes > 3) return;
    server.Stop(SIGQUIT);
    server.Start();
  });
}

}  // namespace
}  // namespace quantry::server
