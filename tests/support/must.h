// What a test's helper cannot go on without.
#pragma once

#include <cstdlib>

namespace quantry::testing {

inline void Must(bool ok) {
  if (!ok) std::abort();
}

}  // namespace quantry::testing
