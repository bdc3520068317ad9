#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

// Resource names as users type them. Every command takes a short id ("my-job")
// or a full name ("tenants/t/quantizationJobs/my-job"); the rest of the CLI
// sees full names only. Errors are INVALID_ARGUMENT INVALID_NAME.
namespace quantry::cli {

absl::StatusOr<std::string> ResolveTenant(std::string_view tenant);
absl::StatusOr<std::string> ResolveJob(std::string_view tenant, std::string_view id_or_name);
// "" when the text can be no artifact: then it is a job.
std::string ResolveArtifact(std::string_view tenant, std::string_view uid_or_name);

// What follows the last "/": "my-job".
std::string_view ShortId(std::string_view name);

}  // namespace quantry::cli
