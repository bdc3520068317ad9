#include "server/rpc/stored_bytes.h"

#include "server/jobs/rules.h"

namespace quantry::server {

absl::StatusOr<std::int64_t> UploadBytesToCount(const ServiceContext& context,
                                                const std::string& tenant) {
  const auto quota = context.store->Quota(tenant);
  if (!quota.ok()) return quota.status();
  return quota->max_stored_bytes == 0 ? 0 : context.blobs->StoredBytes(tenant);
}

absl::Status CheckRoomForUpload(const ServiceContext& context, const std::string& tenant,
                                std::int64_t more) {
  const auto quota = context.store->Quota(tenant);
  if (!quota.ok()) return quota.status();
  if (quota->max_stored_bytes == 0) return absl::OkStatus();
  const auto artifacts = context.store->ArtifactBytes(tenant);
  if (!artifacts.ok()) return artifacts.status();
  const auto uploads = context.blobs->StoredBytes(tenant);
  if (!uploads.ok()) return uploads.status();
  return CheckStoredBytes(*quota, *artifacts + *uploads, more);
}

}  // namespace quantry::server
