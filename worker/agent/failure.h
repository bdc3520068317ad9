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

// `error` within what FailJob takes: a server refuses a longer message and the
// failure would never be told. Texts of engines may go on for pages.
v1::EngineError Bounded(v1::EngineError error);
// The end of a log, likewise. Valid UTF-8 when `text` is.
std::string BoundedLogTail(const std::string& text);

// Whether another attempt may end differently.
bool IsRetryable(const v1::EngineError& error);

}  // namespace quantry::agent
