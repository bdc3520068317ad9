#include "server/auth/principal.h"

#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/ids.h"
#include "common/utf8_prefix.h"

namespace quantry::server {
namespace {

constexpr std::array kRoleNames = {
    std::pair(Role::kViewer, std::string_view("viewer")),
    std::pair(Role::kSubmitter, std::string_view("submitter")),
    std::pair(Role::kAdmin, std::string_view("admin")),
    std::pair(Role::kWorker, std::string_view("worker")),
};
// Names go into every log line of a change.
constexpr size_t kMaxNameBytes = 512;

absl::Status Wanted(std::string_view what, std::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat("wanted ", std::string(what), ", got '", Utf8Prefix(got, kMaxNameBytes), "'"));
}

}  // namespace

std::string_view RoleName(Role role) { return kRoleNames[static_cast<size_t>(role)].second; }

absl::StatusOr<Role> ParseRole(std::string_view text) {
  for (const auto& [role, name] : kRoleNames) {
    if (text == name) return role;
  }
  return Wanted("role viewer, submitter, admin or worker", text);
}

absl::StatusOr<Principal> MakePrincipal(std::string_view name, std::string_view role,
                                        std::string_view tenant) {
  if (name.empty() || name.size() > kMaxNameBytes) {
    return Wanted("a principal of 1 to 512 bytes", name);
  }
  auto parsed = ParseRole(role);
  if (!parsed.ok()) return parsed.status();
  if (*parsed == Role::kWorker) {
    // Whose job a worker gets is the scheduler's choice.
    if (!tenant.empty() && tenant != kAllTenants) {
      return Wanted("tenant * or none for role worker: workers serve all tenants", tenant);
    }
    tenant = kAllTenants;
  }
  if (tenant != kAllTenants && !ValidateTenant(tenant).ok()) {
    return Wanted("a tenant (1 to 63 of a-z, 0-9 and -, a letter first) or *", tenant);
  }
  return Principal{.name = std::string(name),
                   .role = *parsed,
                   .tenant = std::string(tenant),
                   .expire_time = std::nullopt};
}

absl::StatusOr<Principal> PrincipalOfSpiffeId(std::string_view uri, std::string_view domain) {
  const std::string form = absl::StrCat("spiffe://", std::string(domain), "/[tenant/T/]role/R");
  const std::vector<std::string> parts = absl::StrSplit(std::string(uri), '/');
  if (parts.size() < 5 || parts[0] != "spiffe:" || !parts[1].empty() || parts[2] != domain) {
    return Wanted(form, uri);
  }
  if (parts[3] == "role") return MakePrincipal(uri, parts[4], kAllTenants);
  if (parts[3] != "tenant" || parts.size() < 7 || parts[5] != "role" || parts[4] == kAllTenants) {
    return Wanted(form, uri);
  }
  return MakePrincipal(uri, parts[6], parts[4]);
}

}  // namespace quantry::server
