#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace quantry::agent {

// LocalRoots::Resolve (common/confined.h) with the reasons a job ends with.
// Roots that this machine does not have are left out.
//
// Errors: SOURCE_FORBIDDEN, SOURCE_MISSING.
absl::StatusOr<std::string> ResolveBelowRoots(std::string_view path,
                                              const std::vector<std::string>& roots);

}  // namespace quantry::agent
