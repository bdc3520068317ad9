// What is special to s3:// storage. Internal to common/storage*.cc.
#pragma once

#include <arrow/filesystem/filesystem.h>
#include <arrow/result.h>

#include <memory>
#include <string>
#include <string_view>

namespace quantry::storage_internal {

// The file system of an s3:// URI; `base` becomes bucket/prefix. Small objects are
// written in one request, and a request that failed for a moment is repeated: at
// most 7 times, after waits that grow and are jittered, 5 to 10 s together. A store
// that sends nothing for 3 s counts as failed: the S3 client's own limit.
//
// Beside what the client itself would repeat (5xx, 429, broken connections) that is
// an error document in reply to a read of fewer bytes than it has: the client has no
// room for it and reports no status. All requests of Storage may be repeated: reads
// change nothing, writes put the same bytes under the same name.
arrow::Result<std::shared_ptr<arrow::fs::FileSystem>> OpenS3(std::string_view uri,
                                                             std::string* base);

// What to do about the error with this text when it is the answer to a request in
// another region than the bucket's, to be added to it; "" when it is not.
std::string OtherRegionHint(std::string_view uri, std::string_view error);

}  // namespace quantry::storage_internal
