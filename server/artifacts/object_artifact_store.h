// Artifacts in an object store: s3://, gs:// or abfs:// through Arrow's
// filesystem (common/storage.h).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/artifacts/artifact_store.h"

namespace quantry::server {

// `root_uri` names bucket and prefix; what follows '?' (endpoint_override,
// scheme, region) goes with every URI made below it. Credentials come from the
// store's usual environment variables and files: a URI that holds some is
// refused, because clients and workers see it. Asks the store once.
//
// Errors: INVALID_CONFIG when the URI is wrong or the store does not answer.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenObjectArtifactStore(const std::string& root_uri);

}  // namespace quantry::server
