#include "server/jobs/postgres/peers.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <csignal>
#include <thread>

#include "common/errors.h"
#include "server/jobs/postgres/conninfo.h"
#include "tests/support/postgres_server.h"

namespace quantry::server::postgres {
namespace {

using quantry::testing::PostgresServer;

// One server's end, with what it heard.
class Heard {
 public:
  explicit Heard(const std::string& uri) {
    auto peers = Peers::Join({.conninfo = MakeConninfo(uri, "").value(),
                              .clock = &clock,
                              .on_wakeup =
                                  [this](const JobKey* job) {
                                    Add(job == nullptr ? "work" : job->tenant + "/" + job->id);
                                  },
                              .on_missed = [this] { Add("missed"); }});
    EXPECT_TRUE(peers.ok()) << peers.status();
    end = *std::move(peers);
    WaitFor("missed");  // it listens
  }

  // Within 10 s; forgets it.
  bool WaitFor(const std::string& what) {
    std::unique_lock lock(mutex_);
    const bool found = changed_.wait_for(lock, std::chrono::seconds(10),
                                         [&] { return heard_.find(what) != heard_.end(); });
    if (found) heard_.erase(heard_.find(what));
    return found;
  }
  size_t left() {
    std::lock_guard lock(mutex_);
    return heard_.size();
  }

  FollowingClock clock;

 private:
  void Add(const std::string& what) {
    std::lock_guard lock(mutex_);
    heard_.insert(what);
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multiset<std::string> heard_;

 public:
  std::unique_ptr<Peers> end;  // last: its thread adds to the others until it is gone
};

TEST(PeersTest, TheOthersHearAndOneselfDoesNot) {
  const std::string uri = PostgresServer::Shared().NewUri();
  Heard a(uri);
  Heard b(uri);
  Heard stranger(PostgresServer::Shared().NewUri());
  const JobKey job{"acme", "job-one"};
  a.end->Tell(&job);
  a.end->Tell(nullptr);
  EXPECT_TRUE(b.WaitFor("acme/job-one"));
  EXPECT_TRUE(b.WaitFor("work"));
  b.end->Tell(&job);
  EXPECT_TRUE(a.WaitFor("acme/job-one"));
  EXPECT_EQ(a.left() + b.left() + stranger.left(), 0u);
}

TEST(PeersTest, WakeUpsAreMerged) {
  const std::string uri = PostgresServer::Shared().NewUri();
  Heard a(uri);
  Heard b(uri);
  const JobKey job{"acme", "job-one"};
  const JobKey last{"acme", "last"};
  for (int i = 0; i < 10'000; ++i) a.end->Tell(&job);
  a.end->Tell(&last);
  ASSERT_TRUE(b.WaitFor("acme/last"));
  EXPECT_TRUE(b.WaitFor("acme/job-one"));
  EXPECT_LT(b.left(), 100u);
}

TEST(PeersTest, ManyJobsTakeSeveralMessagesAndTooManyWakeAll) {
  const std::string uri = PostgresServer::Shared().NewUri();
  Heard a(uri);
  Heard b(uri);
  for (int i = 0; i < 900; ++i) {
    const JobKey job{"a-tenant-of-some-name", "job-" + std::to_string(i)};
    a.end->Tell(&job);
  }
  for (int i = 0; i < 900; ++i) {
    ASSERT_TRUE(b.WaitFor("a-tenant-of-some-name/job-" + std::to_string(i))) << i;
  }
  for (int i = 0; i < 100'000; ++i) {
    const JobKey job{"acme", std::to_string(i)};
    a.end->Tell(&job);
  }
  EXPECT_TRUE(b.WaitFor("missed"));
}

TEST(PeersTest, ComesBackAfterARestartAndSaysThatItMissedSome) {
  PostgresServer server;
  const std::string uri = server.NewUri();
  Heard a(uri);
  Heard b(uri);
  server.Stop(SIGINT);
  server.Start();
  EXPECT_TRUE(a.WaitFor("missed"));
  EXPECT_TRUE(b.WaitFor("missed"));
  a.end->Tell(nullptr);
  EXPECT_TRUE(b.WaitFor("work"));
}

TEST(PeersTest, TheClockIsTheDatabases) {
  Heard a(PostgresServer::Shared().NewUri());
  const Duration apart = a.clock.Now() - SystemClock().Now();
  EXPECT_LT(std::chrono::abs(apart), std::chrono::seconds(1));
}

// A server far from its database, whose readings of the clock all take long. The schema's own
// clock_timestamp() goes before the database's.
TEST(PeersTest, AStepOfTheClockIsSeenFromFarAway) {
  const PostgresServer& server = PostgresServer::Shared();
  const std::string uri = PostgresServer::Shared().NewUri();
  const std::string schema = uri.substr(uri.rfind("%3D") + 3);
  server.Execute("CREATE TABLE " + schema + ".step AS SELECT interval '0' AS ahead");
  server.Execute("CREATE FUNCTION " + schema +
                 ".clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$"
                 "DECLARE read timestamptz; BEGIN PERFORM pg_sleep(0.04);"
                 "read := pg_catalog.clock_timestamp() + (SELECT ahead FROM " +
                 schema + ".step); PERFORM pg_sleep(0.04); RETURN read; END $$");
  Heard a(uri + ",pg_catalog");
  const auto apart = [&] { return a.clock.Now() - SystemClock().Now(); };
  for (const int hours : {1, -1}) {
    server.Execute("UPDATE " + schema + ".step SET ahead = '" + std::to_string(hours) + " h'");
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    const auto off = [&] { return std::chrono::abs(apart() - std::chrono::hours(hours)); };
    while (off() > std::chrono::seconds(1) && std::chrono::steady_clock::now() < patience) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_LT(off(), std::chrono::seconds(1)) << hours;
  }
}

TEST(PeersTest, NobodyThere) {
  auto peers = Peers::Join({"host='/nowhere'", nullptr, nullptr, nullptr});
  EXPECT_TRUE(HasReason(peers.status(), Reason::kStoreUnavailable)) << peers.status();
}

}  // namespace
}  // namespace quantry::server::postgres
