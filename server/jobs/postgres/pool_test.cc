#include "server/jobs/postgres/pool.h"

#include <atomic>
#include <latch>
#include <thread>

#include <gtest/gtest.h>

#include "common/errors.h"
#include "server/jobs/postgres/conninfo.h"
#include "tests/support/postgres_server.h"

namespace quantry::server::postgres {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::PostgresServer;

absl::Status Refused() {
  return MakeError(Reason::kStoreUnavailable, "FATAL: sorry, too many clients already");
}

absl::Status Wait(Database& db) {
  db.Query("SELECT pg_sleep(0.02)");
  return absl::OkStatus();
}

// A pool on a real server whose openings do what `before` says of the n-th one (from 0).
class TestPool {
 public:
  TestPool(int size, std::function<absl::Status(int)> before)
      : conninfo_(*MakeConninfo(PostgresServer::Shared().NewUri(), "")),
        before_(std::move(before)),
        pool_([this] { return Open(); }, size) {}

  Pool& pool() { return pool_; }
  int openings() const { return openings_; }
  int opened() const { return opened_; }
  int most_at_once() const { return most_at_once_; }

  // Calls from `callers` threads at once.
  std::vector<absl::Status> ReadFromAll(int callers) {
    std::vector<absl::Status> results(callers);
    std::vector<std::jthread> threads;
    for (absl::Status& result : results) {
      threads.emplace_back([&] { result = pool_.Read(Wait); });
    }
    threads.clear();
    return results;
  }

 private:
  absl::StatusOr<std::unique_ptr<Database>> Open() {
    const int now = ++at_once_;
    for (int most = most_at_once_; most < now && !most_at_once_.compare_exchange_weak(most, now);) {
    }
    absl::Status status = before_(openings_++);
    auto db = status.ok() ? Database::Open(conninfo_) : status;
    --at_once_;
    if (db.ok()) ++opened_;
    return db;
  }

  const std::string conninfo_;
  const std::function<absl::Status(int)> before_;
  std::atomic<int> openings_ = 0;
  std::atomic<int> opened_ = 0;
  std::atomic<int> at_once_ = 0;
  std::atomic<int> most_at_once_ = 0;
  Pool pool_;
};

absl::Status Quickly(int) { return absl::OkStatus(); }

TEST(PostgresPool, ConnectionsAreOpenedOneByOneAndNoMoreThanItsSize) {
  TestPool test(4, Quickly);
  for (const absl::Status& result : test.ReadFromAll(32)) EXPECT_TRUE(result.ok()) << result;
  EXPECT_LT(test.most_at_once(), 4);  // 1, but where one takes over 0.3 s
  EXPECT_LE(test.opened(), 4);
}

TEST(PostgresPool, WhatIsGivenBackServesThoseWhoWaitForAnOpening) {
  std::latch release(1);
  TestPool test(2, [&](int n) {
    if (n == 1) release.wait();
    return absl::OkStatus();
  });
  ASSERT_TRUE(test.pool().Read(Wait).ok());
  std::jthread holder([&] {
    EXPECT_TRUE(test.pool()
                    .Read([](Database& db) {
                      db.Query("SELECT pg_sleep(0.5)");
                      return absl::OkStatus();
                    })
                    .ok());
  });
  while (test.openings() < 1) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(100));
  std::jthread opener([&] { EXPECT_TRUE(test.pool().Read(Wait).ok()); });
  while (test.openings() < 2) std::this_thread::yield();
  EXPECT_TRUE(test.pool().Read(Wait).ok());  // the second opening still hangs
  EXPECT_EQ(test.opened(), 1);
  release.count_down();
}

TEST(PostgresPool, AnOpeningThatHangsHoldsOnlyTheCallThatTriedIt) {
  std::latch release(1);
  TestPool test(4, [&](int n) {
    if (n == 0) release.wait();
    return absl::OkStatus();
  });
  const auto begin = steady_clock::now();
  std::jthread stuck([&] { EXPECT_TRUE(test.pool().Read(Wait).ok()); });
  while (test.openings() < 1) std::this_thread::yield();
  for (const absl::Status& result : test.ReadFromAll(8)) EXPECT_TRUE(result.ok()) << result;
  EXPECT_GE(steady_clock::now() - begin, milliseconds(200));
  EXPECT_GE(test.most_at_once(), 2);
  release.count_down();
}

TEST(PostgresPool, ARefusedOpeningFailsNoCallThatAnotherConnectionCanServe) {
  TestPool test(8, [](int n) { return n == 0 ? absl::OkStatus() : Refused(); });
  ASSERT_TRUE(test.pool().Read(Wait).ok());
  for (const absl::Status& result : test.ReadFromAll(16)) EXPECT_TRUE(result.ok()) << result;
  EXPECT_EQ(test.opened(), 1);
  EXPECT_GE(test.openings(), 2);
}

TEST(PostgresPool, WithoutAnyConnectionTheRefusalIsToldAndKnockedAtSeldom) {
  TestPool test(4, [](int n) { return n == 0 ? Refused() : absl::OkStatus(); });
  const auto begin = steady_clock::now();
  const absl::Status first = test.pool().Read(Wait);
  EXPECT_EQ(first, Refused());
  const absl::Status second = test.pool().Read(Wait);
  if (steady_clock::now() - begin < milliseconds(150)) {
    EXPECT_EQ(second, Refused());
    EXPECT_EQ(test.openings(), 1);
  }
  std::this_thread::sleep_for(milliseconds(250));
  EXPECT_TRUE(test.pool().Read(Wait).ok());
}

TEST(PostgresPool, AServerThatNeverAnswersEndsInUnavailable) {
  std::latch release(1);
  TestPool test(1, [&](int) {
    release.wait();
    return absl::OkStatus();
  });
  std::jthread stuck([&] { EXPECT_TRUE(test.pool().Read(Wait).ok()); });
  while (test.openings() < 1) std::this_thread::yield();
  const absl::Status status = test.pool().Read(Wait);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("has not opened a connection within 5 s"), std::string::npos)
      << status;
  release.count_down();
}

TEST(PostgresPool, ABrokenConnectionIsReplacedWithoutAFailedCall) {
  TestPool test(2, Quickly);
  ASSERT_TRUE(test.pool().Read(Wait).ok());
  PostgresServer::Shared().Execute(
      "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
      " WHERE application_name = 'quantryd'");
  EXPECT_TRUE(test.pool().Read(Wait).ok());
  EXPECT_EQ(test.opened(), 2);
}

}  // namespace
}  // namespace quantry::server::postgres
