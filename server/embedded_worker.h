// The quantry-worker that an embedded server runs: how its settings follow from the server's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "quantry/v1/config.pb.h"

namespace quantry::server {

// Program and flags. `server` is the worker port's address; `token_file` may be empty.
std::vector<std::string> EmbeddedWorkerCommand(const v1::ServerConfig& config,
                                               std::string_view server,
                                               std::string_view token_file);

// Asks that program with --check-config, which looks at the settings that it alone reads (hub,
// account of the engines, free disk). OK for a server without an embedded worker.
//
// Errors: INVALID_CONFIG, with what the worker says or why it cannot be started.
absl::Status CheckEmbeddedWorker(const v1::ServerConfig& config);

}  // namespace quantry::server
