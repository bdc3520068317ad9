#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace quantry {

// The URI of an empty bucket on an S3 server (moto) of this process's own,
// started on first use and killed with it; credentials are put into the
// environment. The server is `moto_server` in $QUANTRY_TEST_VENV/bin, by
// default the environment that scripts/bootstrap makes.
//
// NOT_FOUND when it is not installed: a reason to skip, told to the reader.
absl::StatusOr<std::string> S3TestBucket();

}  // namespace quantry
