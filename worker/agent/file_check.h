#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/storage.h"

namespace quantry::agent {

// Whether `path` can be read whole and has that digest. An error only when `check`, called
// after each MiB, wants an end.
absl::StatusOr<bool> HasSha256(const std::string& path, const std::string& sha256,
                               const TransferCheck& check);

}  // namespace quantry::agent
