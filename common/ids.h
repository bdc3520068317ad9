#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Identifiers and resource names:
//   tenants/{tenant}                            collection parent
//   tenants/{tenant}/quantizationJobs/{id}
//   tenants/{tenant}/artifacts/{uid}
//   tenants/{tenant}/blobs/{sha256}
// Parsing is strict: a name that parses formats to the same text. Errors are
// INVALID_ARGUMENT INVALID_NAME saying what was wanted and got.
namespace quantry {

// Random (version 4) UUID in lower case, from the system's generator.
std::string NewUuid4();
// 8-4-4-4-12 hex digits, either case, any version.
bool IsUuid(std::string_view text);

// 4-63 characters of a-z, 0-9 and "-", starting with a letter.
absl::Status ValidateJobId(std::string_view id);
// 1-63 characters of a-z, 0-9 and "-", starting with a letter.
absl::Status ValidateTenant(std::string_view tenant);

struct JobName {
  std::string tenant;
  std::string id;
  bool operator==(const JobName&) const = default;
};

struct ArtifactName {
  std::string tenant;
  std::string uid;  // a UUID
  bool operator==(const ArtifactName&) const = default;
};

struct BlobName {
  std::string tenant;
  std::string sha256;  // 64 lower-case hex digits
  bool operator==(const BlobName&) const = default;
};

// "tenants/acme" -> "acme".
absl::StatusOr<std::string> ParseTenantName(std::string_view name);
absl::StatusOr<JobName> ParseJobName(std::string_view name);
absl::StatusOr<ArtifactName> ParseArtifactName(std::string_view name);
absl::StatusOr<BlobName> ParseBlobName(std::string_view name);

std::string FormatTenantName(std::string_view tenant);
std::string FormatJobName(std::string_view tenant, std::string_view id);
std::string FormatArtifactName(std::string_view tenant, std::string_view uid);
std::string FormatBlobName(std::string_view tenant, std::string_view sha256);

}  // namespace quantry
