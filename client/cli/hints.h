#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace quantry::cli {

// What a user of this CLI does about an error: by reason first, then by code.
// "" when nothing general can be said.
std::string HintFor(std::string_view reason, absl::StatusCode code);

// The same for an UNAUTHENTICATED error by its metadata "cause"; "" for others.
std::string HintForCause(std::string_view cause);

// What to do when gRPC could not connect, from its words and whether we spoke TLS.
std::string ConnectionHint(std::string_view message, bool tls);

}  // namespace quantry::cli
