#include "server/rpc/stored_bytes.h"

#include <chrono>

#include "server/jobs/rules.h"

namespace quantry::server {
namespace {

// A store that answers lets others look long before.
constexpr auto kLongestTurn = std::chrono::milliseconds(100);

}  // namespace

absl::StatusOr<std::int64_t> UploadBytesToCount(const ServiceContext& context,
                                                const std::string& tenant, bool among_short_calls) {
  const auto quota = context.store->Quota(tenant);
  if (!quota.ok()) return quota.status();
  if (quota->max_stored_bytes == 0) return 0;
  if (!among_short_calls) return context.blobs->StoredBytes(tenant);
  auto& waits = context.runtime->store_waits;
  if (!waits.try_acquire_for(kLongestTurn)) return RpcRuntime::Overloaded();
  const auto bytes = context.blobs->StoredBytes(tenant);
  waits.release();
  return bytes;
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
