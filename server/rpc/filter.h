// The filter of ListQuantizationJobs:
//   filter = [ term { "AND" term } ]
//   term   = "state" "=" STATE | "method" "=" NAME | "labels." KEY "=" value
//   value  = '"' characters, \" and \\ escaped '"' | word
// Each field at most once (each label key at most once). Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/jobs/job.h"

namespace quantry::server {

struct JobFilter {
  std::vector<JobState> states;
  std::string method;
  std::map<std::string, std::string> labels;
};

// INVALID_ARGUMENT INVALID_FILTER names the place and what was wanted there.
absl::StatusOr<JobFilter> ParseJobFilter(std::string_view text);

}  // namespace quantry::server
