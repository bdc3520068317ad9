#pragma once

#include "absl/status/status.h"
#include "quantry/v1/engine.pb.h"

namespace quantry::agent {

// What FailJob wants to know about a failed step of an attempt: reason, message
// and metadata of the status (common/errors.h), and who can do something about
// it. Statuses without a reason are classified by their code: disk full,
// unreachable storage and permissions are the environment's.
v1::EngineError ToEngineError(const absl::Status& status);

// Whether another attempt may end differently.
bool IsRetryable(const v1::EngineError& error);

}  // namespace quantry::agent
