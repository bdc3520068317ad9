// What each rpc takes: one row an rpc, checked before its handler runs. Pure,
// thread-safe. docs/security.md shows the same rows; a test compares.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "server/auth/principal.h"

namespace quantry::server {

// Whom an rpc is about.
enum class Scope {
  kTenant,   // the tenant of the resource name in the request
  kAnybody,  // no tenant: what every caller of the role may know
  kService,  // all tenants: only a principal of every tenant
};

struct Permission {
  std::string_view method;  // "QuantizationService/GetQuantizationJob"
  Role least;               // kWorker: workers and nobody else
  Scope scope;
  std::string_view name;       // path of the field with the resource name; "" without one
  bool changes;                // gets a line in the audit log
  std::string_view made = "";  // path in the response to the name of what was made
  bool tells_request = false;  // the audit log says what was asked for
};

std::span<const Permission> AllPermissions();
// By full name, "/quantry.v1.AdminService/ListWorkers"; null when there is no row.
const Permission* FindPermission(std::string_view full_method);

// The role: PERMISSION_DENIED says which is wanted and which was got.
absl::Status CheckRole(const Permission& permission, const Principal& principal);
// The tenant of the name in `request`. Another tenant's: NOT_FOUND, whether the
// thing exists or not. A malformed name is left to the handler.
absl::Status CheckTenant(const Permission& permission, const Principal& principal,
                         const google::protobuf::Message& request);

// The resource name at `permission.name` of a request; "" without one.
std::string ResourceOf(const Permission& permission, const google::protobuf::Message& request);
// The same at `permission.made` of a response.
std::string MadeBy(const Permission& permission, const google::protobuf::Message& response);
// What the audit log says of a request, as JSON cut at 1 KiB; "" where it says nothing.
std::string ToldOf(const Permission& permission, const google::protobuf::Message& request);

}  // namespace quantry::server
