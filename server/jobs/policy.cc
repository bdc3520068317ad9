#include "server/jobs/policy.h"

#include <algorithm>

namespace quantry::server {

Duration Backoff(const JobPolicy& policy, int failures, uint64_t random) {
  Duration ceiling = policy.backoff_first;
  for (int i = 1; i < failures && ceiling < policy.backoff_cap; ++i) ceiling *= 2;
  ceiling = std::min(ceiling, policy.backoff_cap);
  Duration floor = std::min(policy.backoff_first / 2, ceiling);
  auto width = static_cast<uint64_t>((ceiling - floor).count()) + 1;
  return floor + Duration(static_cast<int64_t>(random % width));
}

}  // namespace quantry::server
