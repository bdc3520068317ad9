// BlobStore in a local folder:
//   {root}/{tenant}/{sha256}            finished, read-only
//   {root}/{tenant}/.partial/{sha256}   upload in progress, locked with flock
#pragma once

#include <memory>
#include <string>

#include "server/artifacts/blob_store.h"

namespace quantry::server {

// Creates the folder. FAILED_PRECONDITION when that is impossible.
absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(const std::string& root);

}  // namespace quantry::server
