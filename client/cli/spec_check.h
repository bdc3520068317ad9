#pragma once

#include "absl/status/status.h"
#include "quantry/v1/quantization_service.pb.h"

namespace quantry::cli {

// Whether the server's methods can run this spec: method offered, bits and
// output formats of its list, no contradiction of its recipe, calibration given
// where needed. INVALID_ARGUMENT
// INVALID_SPEC otherwise. The server checks all of it again, and more.
absl::Status CheckSpec(const v1::JobSpec& spec, const v1::ListMethodsResponse& methods);

}  // namespace quantry::cli
