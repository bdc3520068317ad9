#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace quantry::cli {

// What a user of this CLI does about an error: by reason first, then by code.
// "" when nothing general can be said.
std::string HintFor(std::string_view reason, absl::StatusCode code);

}  // namespace quantry::cli
