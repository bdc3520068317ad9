#include "client/cli/names.h"

#include "common/ids.h"

namespace quantry::cli {

absl::StatusOr<std::string> ResolveTenant(std::string_view tenant) {
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  return FormatTenantName(tenant);
}

absl::StatusOr<std::string> ResolveJob(std::string_view tenant, std::string_view id_or_name) {
  if (id_or_name.find('/') != std::string_view::npos) {
    if (const auto parsed = ParseJobName(id_or_name); !parsed.ok()) return parsed.status();
    return std::string(id_or_name);
  }
  if (absl::Status status = ValidateTenant(tenant); !status.ok()) return status;
  if (absl::Status status = ValidateJobId(id_or_name); !status.ok()) return status;
  return FormatJobName(tenant, id_or_name);
}

std::string ResolveArtifact(std::string_view tenant, std::string_view uid_or_name) {
  if (ParseArtifactName(uid_or_name).ok()) return std::string(uid_or_name);
  if (!IsUuid(uid_or_name) || !ValidateTenant(tenant).ok()) return "";
  return FormatArtifactName(tenant, uid_or_name);
}

std::string_view ShortId(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? name : name.substr(slash + 1);
}

}  // namespace quantry::cli
