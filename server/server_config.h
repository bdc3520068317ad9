// The checked configuration of quantryd: defaults that depend on the machine
// are filled in and wrong values refused before anything is started.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "quantry/v1/config.pb.h"

namespace quantry::server {

// INVALID_ARGUMENT INVALID_CONFIG names the flag, what was wanted and got;
// FAILED_PRECONDITION for an address beyond loopback.
absl::Status FinishServerConfig(v1::ServerConfig* config);

// The URI uploads are kept below: blob_root, or the folder blob_dir.
std::string BlobRoot(const v1::ServerConfig& config);

// Whether callers are asked who they are.
bool AuthenticationConfigured(const v1::ServerConfig& config);

}  // namespace quantry::server
