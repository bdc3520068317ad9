#include "server/scheduling/wakeup_hub.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <thread>

namespace quantry::server {
namespace {

const JobKey kJob{"acme", "job-one"};
const JobKey kOther{"acme", "job-two"};

TEST(WakeupHubTest, WakesWatchersOfThatJobOnly) {
  WakeupHub hub;
  int one = 0;
  int two = 0;
  auto first = hub.OnJobChanged(kJob, [&] { ++one; });
  auto second = hub.OnJobChanged(kJob, [&] { ++one; });
  auto other = hub.OnJobChanged(kOther, [&] { ++two; });
  hub.JobChanged(kJob);
  EXPECT_EQ(one, 2);
  EXPECT_EQ(two, 0);
  hub.JobChanged({"other tenant", "job-one"});
  EXPECT_EQ(one, 2);
  first.Reset();
  hub.JobChanged(kJob);
  EXPECT_EQ(one, 3);
}

TEST(WakeupHubTest, WakesThoseWhoWaitLongestFirst) {
  WakeupHub hub;
  std::string order;
  std::vector<WakeupHub::Subscription> waiting;
  for (char name : {'a', 'b', 'c'}) {
    waiting.push_back(hub.OnWorkAvailable([&order, name] { order += name; }));
  }
  hub.WorkAvailable(2);
  EXPECT_EQ(order, "ab");
  hub.WorkAvailable(2);
  EXPECT_EQ(order, "abca");
  hub.WorkAvailable(100);
  EXPECT_EQ(order, "abcabca");
  waiting.clear();
  hub.WorkAvailable();
  EXPECT_EQ(order, "abcabca");
}

TEST(WakeupHubTest, ACallbackMayEndItsOwnSubscription) {
  WakeupHub hub;
  int calls = 0;
  WakeupHub::Subscription subscription;
  subscription = hub.OnJobChanged(kJob, [&] {
    ++calls;
    subscription.Reset();
  });
  hub.JobChanged(kJob);
  hub.JobChanged(kJob);
  EXPECT_EQ(calls, 1);
}

TEST(WakeupHubTest, SubscriptionsMoveAndOutliveTheHub) {
  WakeupHub::Subscription kept;
  int calls = 0;
  {
    WakeupHub hub;
    kept = hub.OnJobChanged(kJob, [&] { ++calls; });
    WakeupHub::Subscription moved = std::move(kept);
    hub.JobChanged(kJob);
    kept = std::move(moved);
    hub.JobChanged(kJob);
  }
  EXPECT_EQ(calls, 2);
}

TEST(WakeupHubTest, ResetWaitsForTheCallback) {
  WakeupHub hub;
  std::latch entered(1);
  std::atomic<bool> ending{false};
  std::atomic<bool> left{false};
  auto subscription = hub.OnJobChanged(kJob, [&] {
    entered.count_down();
    while (!ending) std::this_thread::yield();
    left = true;
  });
  std::thread notifier([&] { hub.JobChanged(kJob); });
  entered.wait();
  ending = true;
  subscription.Reset();
  EXPECT_TRUE(left);
  notifier.join();
}

TEST(WakeupHubTest, ManyThreads) {
  WakeupHub hub;
  std::atomic<int> calls{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 1000; ++n) {
        auto job = hub.OnJobChanged(kJob, [&] { ++calls; });
        auto work = hub.OnWorkAvailable([&] { ++calls; });
        hub.JobChanged(kJob);
        hub.WorkAvailable();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(calls, 8000);
}

TEST(WakeupHubTest, RelaysWhatHappensHereAndNotWhatCameFromElsewhere) {
  WakeupHub hub;
  std::string relayed;
  hub.RelayTo([&](const JobKey* job) { relayed += job == nullptr ? "work " : job->id + " "; });
  int watching = 0;
  int waiting = 0;
  const JobKey job{"acme", "job-one"};
  auto watch = hub.OnJobChanged(job, [&] { ++watching; });
  auto wait = hub.OnWorkAvailable([&] { ++waiting; });
  hub.JobChanged(job);
  hub.WorkAvailable();
  EXPECT_EQ(relayed, "job-one work ");
  EXPECT_EQ(watching * 10 + waiting, 11);
  hub.Receive(&job);
  hub.Receive(nullptr);
  EXPECT_EQ(relayed, "job-one work ");
  EXPECT_EQ(watching * 10 + waiting, 22);
  hub.WakeAll();
  EXPECT_EQ(watching * 10 + waiting, 33);
}

}  // namespace
}  // namespace quantry::server
