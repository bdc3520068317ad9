#include "worker/agent/patience.h"

#include <algorithm>
#include <thread>

#include "common/doubling_wait.h"
#include "common/errors.h"
#include "common/jitter.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kLook{100};

bool IsSilence(const absl::Status& status) {
  return absl::IsUnavailable(status) && ReasonOf(status).empty();
}

}  // namespace

Patience::Patience(Limits limits, std::function<absl::Status()> running,
                   std::function<void(const std::string&)> tell)
    : limits_(limits), running_(std::move(running)), tell_(std::move(tell)) {}

absl::Status Patience::Try(const std::function<absl::Status()>& step) {
  absl::Status status = step();
  const auto end = steady_clock::now() + limits_.total;
  DoublingWait waits(limits_.first, limits_.longest);
  while (IsSilence(status) && steady_clock::now() < end) {
    const milliseconds wait = waits.Next();
    const auto left = std::chrono::duration_cast<milliseconds>(end - steady_clock::now());
    const milliseconds now =
        std::min(RandomTime((wait + milliseconds(1)) / 2, wait), std::max(left, milliseconds(0)));
    tell_("the store does not answer, trying again in " +
          std::to_string((now.count() + 999) / 1000) + " s: " + std::string(status.message()));
    if (auto stopped = Wait(now); !stopped.ok()) return stopped;
    status = step();
  }
  return status;
}

absl::Status Patience::Wait(milliseconds time) const {
  const auto end = steady_clock::now() + time;
  for (auto now = steady_clock::now(); now < end; now = steady_clock::now()) {
    if (auto status = running_(); !status.ok()) return status;
    std::this_thread::sleep_for(std::min<steady_clock::duration>(kLook, end - now));
  }
  return running_();
}

}  // namespace quantry::agent
