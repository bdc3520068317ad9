// What storage in object stores is made of: errors of Arrow's file systems and
// reading their files. Internal to common/storage*.cc.
#pragma once

#include <arrow/io/interfaces.h>
#include <arrow/result.h>
#include <arrow/status.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/storage.h"

namespace quantry::storage_internal {

// `call` returns an arrow::Status or Result. Arrow lets exceptions of the Azure client
// through, when it has no credentials for instance: they become errors like others.
template <typename Call>
auto Caught(const Call& call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& error) {
    return arrow::Status::IOError(error.what());
  }
}

// An error of Arrow as one of Storage, "ACTION PATH: what the store said". `path` is
// bucket/key. Signatures in URLs are left out: readers of errors may not have them.
absl::Status FromArrow(const arrow::Status& status, std::string_view action, std::string_view path);

// Of an open file; `name` is bucket/key, for errors.
std::unique_ptr<StoredReader> NewArrowReader(std::shared_ptr<arrow::io::RandomAccessFile> file,
                                             std::int64_t size, std::string name);

}  // namespace quantry::storage_internal
