// `quantryd token create`: makes a bearer token, shows it once, writes its hash.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "quantry/v1/config.pb.h"

namespace quantry::server {

// The whole subcommand, without "quantryd token"; the exit status: 0, 1 when
// the file cannot be written, 2 for wrong arguments.
int RunTokenCommand(int argc, char** argv);

// The token; its line is in the file when this returns. INVALID_ARGUMENT
// INVALID_CONFIG names the flag that is wrong.
absl::StatusOr<std::string> CreateToken(const v1::TokenConfig& config, Time now);

}  // namespace quantry::server
