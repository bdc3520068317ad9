#include "server/scheduling/store_probe.h"

#include <gtest/gtest.h>

#include <latch>
#include <string>
#include <thread>

namespace quantry::server {
namespace {

using std::chrono::seconds;

TEST(StoreProbeTest, TellsTheLastAnswer) {
  FakeClock clock;
  absl::Status answer = absl::UnavailableError("the disk is gone");
  StoreProbe probe(&clock, {.ask = [&] { return answer; }});
  EXPECT_TRUE(probe.Status().ok()) << "it was opened just now";
  probe.RunOnce();
  EXPECT_EQ(probe.Status().message(), "the disk is gone");
  answer = absl::OkStatus();
  probe.RunOnce();
  EXPECT_TRUE(probe.Status().ok());
}

TEST(StoreProbeTest, AStoreThatHangsIsAwayAndHoldsNobodyUp) {
  FakeClock clock;
  std::latch asked(1);
  std::latch answer(1);
  StoreProbe probe(&clock, {.ask = [&] {
    asked.count_down();
    answer.wait();
    return absl::OkStatus();
  }});
  std::jthread loop([&] { probe.RunOnce(); });
  asked.wait();
  clock.Advance(seconds(5));
  EXPECT_TRUE(probe.Status().ok());
  clock.Advance(seconds(2));
  EXPECT_EQ(probe.Status().message(), "no answer for 7 s");
  answer.count_down();
  loop.join();
  EXPECT_TRUE(probe.Status().ok());
}

TEST(StoreProbeTest, TheLoopAsksUntilStopped) {
  FakeClock clock;
  std::latch three(3);
  int asked = 0;
  StoreProbe probe(&clock, {.ask =
                                [&] {
                                  if (++asked <= 3) three.count_down();
                                  return absl::OkStatus();
                                },
                            .interval = std::chrono::milliseconds(1)});
  std::jthread loop([&](const std::stop_token& stop) { probe.Run(stop); });
  three.wait();
}

}  // namespace
}  // namespace quantry::server
