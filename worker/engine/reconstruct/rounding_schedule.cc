#include "worker/engine/reconstruct/rounding_schedule.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

constexpr std::array kTwenty = {0.80, 0.65, 0.50, 0.43, 0.38, 0.34, 0.30, 0.27, 0.24, 0.21,
                                0.18, 0.15, 0.12, 0.10, 0.08, 0.06, 0.04, 0.02, 0.01, 0.005};
constexpr std::array kTen = {0.75, 0.50, 0.375, 0.25, 0.125, 0.09, 0.06, 0.04, 0.02, 0.005};

}  // namespace

std::span<const double> TwentyStageSchedule() { return kTwenty; }
std::span<const double> TenStageSchedule() { return kTen; }

std::vector<double> ScheduleOf(int stages) {
  if (stages == static_cast<int>(kTwenty.size())) return {kTwenty.begin(), kTwenty.end()};
  if (stages == static_cast<int>(kTen.size())) return {kTen.begin(), kTen.end()};
  // log of the soft fraction, linear between the twenty places; 0 = all soft.
  const auto soft = [](double place) {
    const auto before = static_cast<size_t>(place);
    const double low = before == 0 ? 0.0 : std::log(kTwenty[before - 1]);
    if (before >= kTwenty.size()) return std::exp(low);
    return std::exp(low +
                    (place - static_cast<double>(before)) * (std::log(kTwenty[before]) - low));
  };
  std::vector<double> schedule;
  for (int k = 1; k <= stages; ++k) {
    schedule.push_back(soft(static_cast<double>(kTwenty.size()) * k / stages));
  }
  return schedule;
}

void CheckSchedule(const std::vector<double>& schedule) {
  double before = 1.0;
  for (size_t k = 0; k < schedule.size(); ++k) {
    if (schedule[k] > 0.0 && schedule[k] < before) {
      before = schedule[k];
      continue;
    }
    const std::string got = StrCat(schedule[k]);
    throw UserError("INVALID_SPEC",
                    StrCat("schedule: soft fractions must fall from stage to stage and lie in "
                           "(0, 1); entry ",
                           k, " is ", got, " after ", before),
                    {{"entry", std::to_string(k)}, {"got", got}});
  }
}

}  // namespace quantry::engine
