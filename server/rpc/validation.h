// What tenants send, checked once and turned into domain requests that cannot
// be invalid. All limits on a job's specification are here. Looks at the
// request only: whether sources exist is checked by sources.h. Pure.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "google/protobuf/message.h"
#include "quantry/v1/quantization_service.pb.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

struct SpecLimits {
  std::int64_t max_blob_bytes = std::int64_t{1} << 40;
  // Spec messages larger than this fill the database, not the engine.
  static constexpr std::int64_t kMaxSpecBytes = 256 << 10;
  static constexpr int kMaxLabels = 64;
  static constexpr int kMaxBlobFiles = 10000;
};

// Where "" stands for the tenant of a name that does not say one: never. The
// tenant comes from `parent`.
// Errors: INVALID_ARGUMENT INVALID_SPEC with every field violation;
// INVALID_NAME for a malformed parent or id. Defaults are filled in, the spec
// digest is set, `key.id` is chosen when the request has none.
//
// `methods` is what the engine offers: its recipes, and the formats that each
// method writes. Empty when it is not known; a recipe that the spec contradicts
// and a format that the method does not write are then refused by the engine.
absl::StatusOr<SubmitRequest> ValidateCreate(const v1::CreateQuantizationJobRequest& request,
                                             const SpecLimits& limits,
                                             std::span<const v1::MethodDescription> methods = {});

// Labels, priority and expire_time by update_mask.
absl::StatusOr<UpdateRequest> ValidateUpdate(const v1::UpdateQuantizationJobRequest& request);

// Fills every default of a valid spec, so that the same job always has the
// same bytes. `methods`: see ValidateCreate.
void FillDefaults(v1::JobSpec* spec, std::span<const v1::MethodDescription> methods = {});

// Deterministic serialization: the input of digests.
std::string CanonicalBytes(const google::protobuf::Message& message);
// sha256 hex of the canonical bytes.
std::string DigestOf(const google::protobuf::Message& message);

inline constexpr int kMaxPageSize = 1000;
// gRPC clients take messages of 4 MiB unless told otherwise.
inline constexpr std::size_t kMaxPageBytes = 1 << 20;
// 0 = `normal`, at most kMaxPageSize. INVALID_ARGUMENT when negative.
absl::StatusOr<int> PageSize(int requested, int normal = 50);

}  // namespace quantry::server
