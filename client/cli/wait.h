#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/connection.h"
#include "client/cli/options.h"
#include "client/cli/status_line.h"

namespace quantry::cli {

struct WaitOptions {
  double timeout_s = 0;    // 0 = for as long as it takes
  std::string download;    // pull into this folder after success; "" = do not
  std::string request_id;  // printed with the result when not empty
};

// Whether the artifact of a job that has not ended could be pulled into `folder`, as far as it can
// be told before: FAILED_PRECONDITION says why not. `job` is what the hint calls it. With
// `may_be_there` the folder may hold the very artifact already.
absl::Status CheckDownload(const std::string& folder, std::string_view job, bool may_be_there);

// Follows a job to its end, prints the one JSON object (or the text) that ends
// submit --wait and watch, and maps the end to an exit code. Errors name the job. A
// download that fails is told on stderr: the job is printed all the same, and the exit
// code is the download's.
absl::StatusOr<ExitCode> WaitForJob(Context& context, Connection& connection, StatusLine& line,
                                    const std::string& job_name, const WaitOptions& options);

// Looks an artifact up and pulls it; says on stderr what was done.
struct PullOptions;
struct PullSummary;
absl::StatusOr<PullSummary> PullArtifact(Connection& connection, StatusLine& line,
                                         const std::string& artifact_name,
                                         const PullOptions& options);

}  // namespace quantry::cli
