// What the stores of artifacts and of uploads have in common in an object store:
// s3://, gs:// or abfs:// through Arrow's filesystem (common/storage.h).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/storage.h"

namespace quantry::server {

struct ObjectRoot {
  std::string uri;  // no slash before its query
  std::unique_ptr<Storage> storage;
};

// INVALID_CONFIG where `uri` can be no root: neither file:///FOLDER nor a URI of an object store,
// or one with credentials. Asks nobody. `option` names it in errors.
absl::Status CheckRootUri(std::string_view option, const std::string& uri);

// `uri` names bucket and prefix; what follows '?' (endpoint_override, scheme,
// region) goes with every URI made below it. Credentials come from the store's
// usual environment variables and files: a URI that holds some is refused,
// because clients and workers see it. Writes and removes one object, so that a
// wrong endpoint, bucket or key is told now. `option` names the URI in errors.
//
// Errors: INVALID_CONFIG when the URI is wrong or the store does not answer.
absl::StatusOr<ObjectRoot> OpenObjectRoot(std::string_view option, const std::string& uri);

// The table's reason for a failure of Storage at `name`.
absl::Status ObjectError(const absl::Status& status, std::string_view name);

}  // namespace quantry::server
