#include <arrow/buffer.h>
#include <arrow/io/interfaces.h>

#include <algorithm>
#include <utility>

#include "common/storage_arrow.h"

namespace quantry::storage_internal {
namespace {

class ArrowReader : public StoredReader {
 public:
  ArrowReader(std::shared_ptr<arrow::io::RandomAccessFile> file, std::int64_t size,
              std::string name)
      : file_(std::move(file)), size_(size), name_(std::move(name)) {}
  std::int64_t size_bytes() const override { return size_; }
  absl::StatusOr<std::string> ReadAt(std::int64_t offset, std::int64_t length) override {
    if (offset < 0 || length < 0) return absl::OutOfRangeError("negative offset or length");
    length = std::min(length, std::max<std::int64_t>(0, size_ - offset));
    if (length == 0) return std::string();
    auto buffer = Caught([&] { return file_->ReadAt(offset, length); });
    if (buffer.ok()) return (*buffer)->ToString();
    const absl::Status failed = FromArrow(buffer.status(), "read", name_);
    // It was there when it was opened. Google keeps to the object that was opened: once it is
    // replaced, that one is missing, or its stream is a "closed file". Opened anew it tells.
    const bool is_gone = absl::IsNotFound(failed) || absl::IsInvalidArgument(failed);
    return is_gone ? absl::UnavailableError(failed.message()) : failed;
  }

 private:
  std::shared_ptr<arrow::io::RandomAccessFile> file_;
  std::int64_t size_;
  std::string name_;
};

}  // namespace

std::unique_ptr<StoredReader> NewArrowReader(std::shared_ptr<arrow::io::RandomAccessFile> file,
                                             std::int64_t size, std::string name) {
  return std::make_unique<ArrowReader>(std::move(file), size, std::move(name));
}

}  // namespace quantry::storage_internal
