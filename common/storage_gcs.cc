#include "common/storage_gcs.h"

#include <arrow/filesystem/gcsfs.h>
#include <arrow/status.h>

#include <algorithm>
#include <cctype>

namespace quantry::storage_internal {
namespace {

namespace afs = arrow::fs;

// The client's own is 15 minutes: as long as a worker waits for a store, and then once more.
constexpr double kRetrySeconds = 10;

// A host of Google's own, by its name alone.
bool IsGoogles(std::string_view endpoint) {
  const bool is_name = std::all_of(endpoint.begin(), endpoint.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '.' || c == '-';
  });
  return is_name && endpoint.ends_with(".googleapis.com");
}

}  // namespace

arrow::Result<std::shared_ptr<afs::FileSystem>> OpenGcs(std::string_view uri, std::string* base) {
  ARROW_ASSIGN_OR_RAISE(auto options, afs::GcsOptions::FromUri(std::string(uri), base));
  const std::string& endpoint = options.endpoint_override;
  const bool is_safe = options.scheme == "https" && (endpoint.empty() || IsGoogles(endpoint));
  if (!options.credentials.anonymous() && !is_safe) {
    return arrow::Status::Invalid(
        "Google credentials are sent to https://*.googleapis.com alone, not to ", options.scheme,
        "://", endpoint, "; a store that needs none is gs://anonymous@BUCKET/...");
  }
  if (!options.retry_limit_seconds) options.retry_limit_seconds = kRetrySeconds;
  return afs::GcsFileSystem::Make(options);
}

}  // namespace quantry::storage_internal
