// Who calls. Values; no threads, no I/O.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"

namespace quantry::server {

// kViewer < kSubmitter < kAdmin: each may do what those before it may. kWorker
// is apart: the worker port and nothing else.
enum class Role { kViewer, kSubmitter, kAdmin, kWorker };

std::string_view RoleName(Role role);
// INVALID_ARGUMENT names the roles there are.
absl::StatusOr<Role> ParseRole(std::string_view text);

// Stands for every tenant where one is wanted.
inline constexpr std::string_view kAllTenants = "*";

struct Principal {
  std::string name;
  Role role = Role::kViewer;
  std::string tenant;               // or kAllTenants
  std::optional<Time> expire_time;  // of the credential; unset = never

  // For what is counted of each: names are unique in their tenant.
  std::string key() const { return tenant + "/" + name; }
  bool all_tenants() const { return tenant == kAllTenants; }
  bool Serves(std::string_view other) const { return all_tenants() || tenant == other; }
};

// A principal as a file or a token describes it. An empty tenant stands for
// all of a worker's. INVALID_ARGUMENT says which part is wrong.
absl::StatusOr<Principal> MakePrincipal(std::string_view name, std::string_view role,
                                        std::string_view tenant);

// spiffe://DOMAIN/tenant/T/role/R and spiffe://DOMAIN/role/R (all tenants),
// each with any number of segments behind it; the whole URI is the name.
// INVALID_ARGUMENT for anything else.
absl::StatusOr<Principal> PrincipalOfSpiffeId(std::string_view uri, std::string_view domain);

}  // namespace quantry::server
