// Whose files lie below an artifact or blob root: the object quantry-store there
// names the job store. Another job store knows none of the jobs, so all of their
// files would look like garbage to it. Pure but for the storage; thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/storage.h"

namespace quantry::server {

// OK when the root is `store_id`'s, or was nobody's and is its own now (unless
// `dry_run`). INVALID_ARGUMENT INVALID_CONFIG when it is another's; else what the
// storage says. Of two stores that claim a root at the same moment the later one
// has it, and the other learns it at its next claim.
absl::Status ClaimRoot(Storage& root, const std::string& uri, const std::string& store_id,
                       bool dry_run);

}  // namespace quantry::server
