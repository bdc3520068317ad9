// What a tenant keeps here, against its quota of bytes. Blocks on the store
// and, where there is such a quota, on the disk. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

// Of the tenant's uploads; 0, unseen, when it has no quota of bytes. `among_short_calls`: on
// threads that calls share which never wait for the store; where half of them do already,
// RESOURCE_EXHAUSTED RESOURCE_LIMIT.
absl::StatusOr<std::int64_t> UploadBytesToCount(const ServiceContext& context,
                                                const std::string& tenant, bool among_short_calls);

// RESOURCE_EXHAUSTED QUOTA_STORED_BYTES when `more` bytes of uploads do not
// fit; 0: when nothing does.
absl::Status CheckRoomForUpload(const ServiceContext& context, const std::string& tenant,
                                std::int64_t more);

}  // namespace quantry::server
