#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace google::rpc {
class Status;
}
namespace grpc {
class Status;
}

// Errors as the user sees them. Inside the CLI an error is an absl::Status with
// the details of common/errors.h, its own or the server's; here it is taken
// apart for printing.
namespace quantry::cli {

// One error, ready to print.
struct ErrorReport {
  struct Violation {
    std::string field;
    std::string description;
  };
  std::string code;    // "INVALID_ARGUMENT"
  std::string reason;  // "INVALID_SPEC"; "" when the error carries none
  std::string message;
  std::map<std::string, std::string> metadata;
  std::vector<Violation> violations;  // fields, quotas and missing things alike
  std::optional<double> retry_after_s;
  std::string next;  // what to do now; "" when there is nothing to say
};

// Keeps code, message and details.
absl::Status FromGrpc(const grpc::Status& status);

// The same status with `hint` as its ErrorReport::next.
absl::Status WithNext(absl::Status status, std::string_view hint);

// The same status with one more value in ErrorReport::metadata.
absl::Status WithMetadata(absl::Status status, std::string_view key, std::string_view value);

// What a call that makes or queues a job ended with: when the server may have done it
// all the same, the status tells the request id and to repeat the call with it.
absl::Status NamingRequest(absl::Status status, std::string_view request_id);

ErrorReport Describe(const absl::Status& status);
// How a job failed: QuantizationJob.error.
ErrorReport Describe(const google::rpc::Status& status);

// Whether a call that ended so is worth another try: the server went away, drains or
// is full. A torn connection can show as INTERNAL or UNKNOWN, but then no reason came
// with it.
bool IsBreak(const absl::Status& status);

// Several lines, each ended by "\n", the first starting with "quantry: ". What the
// message says already is not said again for its field.
std::string ErrorText(const ErrorReport& report);

}  // namespace quantry::cli
