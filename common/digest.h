#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// SHA-256, the name of every blob and artifact file. Hex is lower case.
namespace quantry {

// Incremental. Not thread-safe; movable.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(std::string_view data);
  void Update(const void* data, size_t size) {
    Update(std::string_view(static_cast<const char*>(data), size));
  }
  // 64 hex digits. Afterwards the object is as newly made.
  std::string FinishHex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string Sha256Hex(std::string_view data);

// 64 characters of 0-9a-f.
bool IsSha256Hex(std::string_view text);

struct FileDigest {
  std::string sha256;
  int64_t size_bytes = 0;
  bool operator==(const FileDigest&) const = default;
};

// Reads the whole file in 1 MiB steps; `check`, called after each, ends that with what it
// returns unless it is OK. Errors: NOT_FOUND FILE_NOT_FOUND, UNAVAILABLE STORAGE_ERROR.
absl::StatusOr<FileDigest> Sha256File(const std::string& path,
                                      const std::function<absl::Status()>& check = {});

}  // namespace quantry
