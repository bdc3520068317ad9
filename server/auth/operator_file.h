// Files the operator writes for quantryd: a JSON object of one message type a
// line; empty lines and lines that begin with "#" are left out, unknown keys
// are errors.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/message.h"

namespace quantry::server {

// INVALID_ARGUMENT INVALID_CONFIG when it cannot be read, or everybody may
// write it.
absl::StatusOr<std::string> ReadOperatorFile(const std::string& path);

// Reads each line into `entry` and calls `take`, whose error ends it too.
// INVALID_CONFIG names `source`, the line and what is wrong; `keys` is what a
// line may hold, for that message.
absl::Status ParseOperatorLines(std::string_view text, std::string_view source,
                                std::string_view keys, google::protobuf::Message* entry,
                                const std::function<absl::Status()>& take);

}  // namespace quantry::server
