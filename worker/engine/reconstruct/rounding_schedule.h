#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace quantry::engine {

// Soft fraction that is left after each stage's hardening (spec: tesseraq.md
// 2.3); 1 - tau is the cumulative hard fraction.
std::span<const double> TwentyStageSchedule();
std::span<const double> TenStageSchedule();

// 20 and 10 give the published lists; any other count takes the list of 20 at
// evenly spaced places, its last entry kept. `stages` >= 1.
std::vector<double> ScheduleOf(int stages);

// Throws INVALID_SPEC unless every entry lies in (0, 1) and each is below the
// one before.
void CheckSchedule(const std::vector<double>& schedule);

}  // namespace quantry::engine
