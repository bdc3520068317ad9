// BlobStore in an object store:
//   {root}/{tenant}/{sha256}            finished
//   {root}/{tenant}/.asked/{sha256}     empty; its time: when the blob was last found
//   {spool}/{tenant}/.partial/{sha256}  upload in progress, a local file
//
// An upload is collected, and its sha256 checked, in the server's own folder
// and then written to the store as one object, which is there whole or not at
// all. So it goes on only at the server it began at; another one says that it
// stands at 0, and the client starts over there. Two servers may upload one
// blob at once: both write the same bytes.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/storage.h"
#include "server/artifacts/blob_store.h"

namespace quantry::server {

// Asks the store once and creates `spool`. Errors: INVALID_CONFIG; see
// OpenObjectRoot (object_root.h).
absl::StatusOr<std::unique_ptr<BlobStore>> OpenObjectBlobStore(const std::string& root_uri,
                                                               const std::string& spool);

// The same over a storage that is open already; `spool` is there.
std::unique_ptr<BlobStore> NewObjectBlobStore(std::string root_uri,
                                              std::unique_ptr<Storage> storage, std::string spool);

}  // namespace quantry::server
