#include "server/artifacts/blob_store.h"

#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "server/artifacts/local_blob_store.h"
#include "server/artifacts/object_blob_store.h"

namespace quantry::server {

absl::StatusOr<std::unique_ptr<BlobStore>> OpenBlobStore(const std::string& root_uri,
                                                         const std::string& spool) {
  if (!root_uri.starts_with("file:")) return OpenObjectBlobStore(root_uri, spool);
  auto folder = LocalPathFromUri(root_uri);
  if (folder.ok()) return OpenLocalBlobStore(*folder);
  return MakeError(Reason::kInvalidConfig, "blob_root: " + std::string(folder.status().message()));
}

absl::StatusOr<std::vector<BlobState>> BlobStore::FindAll(std::string_view tenant,
                                                          const std::vector<BlobId>& blobs,
                                                          const Awaited& awaited) {
  std::vector<BlobState> states;
  for (const BlobId& blob : blobs) {
    if (absl::Status status = awaited(); !status.ok()) return status;
    auto state = Find(tenant, blob);
    if (!state.ok()) return state.status();
    states.push_back(*state);
  }
  return states;
}

absl::Status CheckBlobId(std::string_view tenant, const BlobId& blob) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  if (IsSha256Hex(blob.sha256) && blob.size_bytes >= 0) return absl::OkStatus();
  return MakeError(Reason::kInvalidArgument,
                   "wanted a blob with 64 lower-case hex digits and a size of 0 or more");
}

}  // namespace quantry::server
