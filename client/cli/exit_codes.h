#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "quantry/v1/job.pb.h"

namespace quantry::cli {

// Process exit codes, the contract with shells and pipelines (docs/getting-started.md).
// They never change meaning; new ones are added at the end.
enum class ExitCode : int {
  kOk = 0,             // succeeded
  kJobFailed = 1,      // the job ended FAILED, or something broke on our side
  kUsage = 2,          // wrong flags, wrong input, a spec the server refuses
  kCancelled = 3,      // the job ended CANCELLED
  kNotFound = 4,       // no such job or artifact for this tenant
  kDenied = 5,         // credentials or a source the server may not read
  kQuota = 6,          // a limit was hit; waiting helps
  kUnreachable = 7,    // no answer from the server
  kWaitTimeout = 8,    // --wait-timeout passed; the job goes on
  kInterrupted = 130,  // Ctrl-C; a job that was waited for goes on
};

// The code of a failed call or a local failure. OK maps to kOk.
ExitCode ExitCodeFor(const absl::Status& status);

// The code of an ended job. A job that has not ended maps to kOk: the command
// that asks has done what it was told.
ExitCode ExitCodeFor(v1::JobState state);

}  // namespace quantry::cli
