#pragma once

#include "absl/status/status.h"
#include "client/cli/connection.h"
#include "client/cli/status_line.h"
#include "quantry/v1/quantization_service.pb.h"

namespace quantry::cli {

// Whether the server's methods can run this spec: method offered, bits and
// output formats of its list, no contradiction of its recipe, calibration given
// where needed. INVALID_ARGUMENT
// INVALID_SPEC otherwise. The server checks all of it again, and more.
absl::Status CheckSpec(const v1::JobSpec& spec, const v1::ListMethodsResponse& methods);

// What only the model decides (shapes, group size, architecture), found by a quote
// of the same request, which has no effect on the server. INVALID_ARGUMENT
// INVALID_SPEC with its problems; CANCELLED when interrupted; OK where there is no
// quote to be had, or not within a few seconds, which `line` says: the job itself
// then tells.
absl::Status CheckByQuote(Connection& connection, StatusLine& line,
                          v1::CreateQuantizationJobRequest request);

}  // namespace quantry::cli
