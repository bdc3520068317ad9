// What is special to gs:// storage. Internal to common/storage*.cc.
#pragma once

#include <arrow/filesystem/filesystem.h>
#include <arrow/result.h>

#include <memory>
#include <string>
#include <string_view>

namespace quantry::storage_internal {

// The file system of a gs:// URI; `base` becomes bucket/prefix. Credentials are
// Google's application default ones, or none with gs://anonymous@bucket. Their
// token goes to googleapis.com by https alone: with another endpoint_override or
// scheme a URI is Invalid unless it is anonymous, since it may be a tenant's.
//
// A request that failed for a moment is repeated for 10 s, or for the URI's
// retry_limit_seconds. A store that is silent holds a call for two minutes: the client's stall
// timeout is none of Arrow's options (GcsOptions, Arrow 26).
arrow::Result<std::shared_ptr<arrow::fs::FileSystem>> OpenGcs(std::string_view uri,
                                                              std::string* base);

}  // namespace quantry::storage_internal
