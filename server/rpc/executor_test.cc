#include "server/rpc/executor.h"

#include <atomic>
#include <future>

#include "gtest/gtest.h"

namespace quantry::server {
namespace {

TEST(Executor, RefusesWhenTheQueueIsFull) {
  std::promise<void> release;
  const std::shared_future<void> gate = release.get_future().share();
  std::promise<void> started;
  Executor executor(1, 2);
  executor.Post([&] {
    started.set_value();
    gate.wait();
  });
  started.get_future().wait();
  EXPECT_TRUE(executor.Submit([] {}));
  EXPECT_TRUE(executor.Submit([] {}));
  EXPECT_FALSE(executor.Submit([] {}));
  executor.Post([] {});  // always
  release.set_value();
}

TEST(Executor, RunsWhatIsQueuedBeforeItEnds) {
  std::atomic<int> ran{0};
  {
    Executor executor(3, 1000);
    for (int i = 0; i < 500; ++i) executor.Post([&] { ++ran; });
  }
  EXPECT_EQ(ran, 500);
}

TEST(Timer, RunsInOrder) {
  Timer timer;
  std::promise<void> done;
  std::vector<int> order;  // the timer's thread only
  const auto now = std::chrono::steady_clock::now();
  timer.At(now + std::chrono::milliseconds(20), [&] {
    order.push_back(2);
    done.set_value();
  });
  timer.At(now + std::chrono::milliseconds(10), [&] { order.push_back(1); });
  done.get_future().wait();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(Timer, CancelledCallbacksDoNotRun) {
  Timer timer;
  std::promise<void> done;
  std::atomic<bool> ran{false};
  const auto now = std::chrono::steady_clock::now();
  const auto handle = timer.At(now + std::chrono::milliseconds(10), [&] { ran = true; });
  timer.Cancel(handle);
  timer.At(now + std::chrono::milliseconds(20), [&] { done.set_value(); });
  done.get_future().wait();
  EXPECT_FALSE(ran);
}

TEST(SerialTask, KickAtReplacesTheEarlierOne) {
  Executor executor(2, 0);
  Timer timer;
  std::atomic<int> runs{0};
  std::promise<void> done;
  std::shared_ptr<SerialTask> task;
  task = std::make_shared<SerialTask>(&executor, [&] {
    if (++runs == 2) return done.set_value();
    const auto now = std::chrono::steady_clock::now();
    task->KickAt(&timer, now + std::chrono::hours(1));
    task->KickAt(&timer, now + std::chrono::milliseconds(5));
  });
  task->Kick();
  done.get_future().wait();
  EXPECT_EQ(runs, 2);
}

TEST(SerialTask, NeverOverlapsAndNeverLosesAKick) {
  Executor executor(4, 0);
  std::atomic<int> wanted{0};
  std::atomic<int> seen{0};
  std::atomic<int> inside{0};
  std::atomic<bool> overlapped{false};
  const auto task = std::make_shared<SerialTask>(&executor, [&] {
    if (++inside != 1) overlapped = true;
    seen = wanted.load();
    --inside;
  });
  std::vector<std::thread> kickers;
  for (int i = 0; i < 4; ++i) {
    kickers.emplace_back([&] {
      for (int j = 0; j < 2000; ++j) {
        ++wanted;
        task->Kick();
      }
    });
  }
  for (std::thread& kicker : kickers) kicker.join();
  std::promise<void> idle;
  // The last kick's run was posted before this one or is merged into it.
  while (seen != 8000) std::this_thread::yield();
  EXPECT_FALSE(overlapped);
}

TEST(SerialTask, StopEndsIt) {
  Executor executor(2, 0);
  std::atomic<int> runs{0};
  std::promise<void> ran;
  std::shared_ptr<SerialTask> task;
  task = std::make_shared<SerialTask>(&executor, [&] {
    ++runs;
    task->Stop();
    ran.set_value();
  });
  task->Kick();
  ran.get_future().wait();
  task->Kick();
  task->Kick();
  EXPECT_EQ(runs, 1);
}

}  // namespace
}  // namespace quantry::server
