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

// The same where only the message tells which mistake it was: a tenant that is not the caller's, a
// role that may not; "" for others.
std::string HintForMessage(std::string_view message, absl::StatusCode code);

// What to do when gRPC could not connect, from its words, whether we spoke TLS and whether we had a
// certificate of our own.
std::string ConnectionHint(std::string_view message, bool tls, bool certificate);

}  // namespace quantry::cli
