// Which sources each tenant's jobs may name (proto/quantry/v1/tenant_sources.proto).
// Uploads are always a tenant's own; this is about what the server's account
// reads (local folders) and what workers read with their credentials (URIs).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/confined.h"
#include "quantry/v1/tenant_sources.pb.h"

namespace quantry::server {

// Immutable, thread-safe.
class TenantSources {
 public:
  // Without a file every tenant may read every URI and below all of `roots`.
  // With it: what its line, or else the line of "*", says; nothing without one.
  // INVALID_ARGUMENT INVALID_CONFIG names the line; FAILED_PRECONDITION for a
  // root that is no folder.
  static absl::StatusOr<TenantSources> Open(const std::vector<std::string>& roots,
                                            const std::string& file);

  bool MayRead(const std::string& tenant, std::string_view uri) const;
  // What MayRead goes by, for a message.
  std::string PrefixesOf(const std::string& tenant) const;
  // Local paths of the tenant's jobs are resolved below these.
  const LocalRoots& RootsOf(const std::string& tenant) const;

 private:
  struct Sources {
    std::vector<std::string> prefixes;
    LocalRoots roots;
  };
  absl::Status Add(const v1::TenantSources& entry);
  const Sources& Of(const std::string& tenant) const;

  LocalRoots roots_;  // the server's
  bool limited_ = false;
  std::map<std::string, Sources> tenants_;
  Sources nothing_;
};

// Whether `uri` is `prefix` or lies below it. A URI that could mean another
// object than it seems to (escapes, "..", empty parts) lies below nothing.
bool IsBelow(std::string_view prefix, std::string_view uri);

}  // namespace quantry::server
