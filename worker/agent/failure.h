#pragma once

#include <string>

#include "absl/status/status.h"
#include "quantry/v1/engine.pb.h"

namespace quantry::agent {

// What FailJob wants to know about a failed step of an attempt: reason, message
// and metadata of the status (common/errors.h), and who can do something about
// it. Statuses without a reason are classified by their code: disk full,
// unreachable storage and permissions are the environment's.
v1::EngineError ToEngineError(const absl::Status& status);

// The end of a log within what FailJob takes: a server refuses a longer one and the
// failure would never be told. Valid UTF-8 when `text` is.
std::string BoundedLogTail(const std::string& text);

// Whether another attempt may end differently.
bool IsRetryable(const v1::EngineError& error);

}  // namespace quantry::agent
