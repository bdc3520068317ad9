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
    auto data = ReadWholly(offset, length);
    if (data.ok()) return *std::move(data);
    const absl::Status failed = FromArrow(data.status(), "read", name_);
    // It was there when it was opened. Google keeps to the object that was opened: once it is
    // replaced, that one is missing, or its stream is a "closed file". Opened anew it tells.
    const bool is_gone = absl::IsNotFound(failed) || absl::IsInvalidArgument(failed);
    return is_gone ? absl::UnavailableError(failed.message()) : failed;
  }

 private:
  // Arrow takes a body of S3 that is shorter than what was asked for (of an object that was
  // replaced, or a 200 with an error document) for the whole, and leaves the rest of the
  // buffer as it was. So the last byte is marked before: when it is the mark afterwards, the
  // read is made again with another mark.
  arrow::Result<std::string> ReadWholly(std::int64_t offset, std::int64_t length) {
    std::string data(static_cast<std::size_t>(length), '\0');
    for (const char mark : {'\x5b', '\xa4'}) {
      data.back() = mark;
      ARROW_ASSIGN_OR_RAISE(const std::int64_t got,
                            Caught([&] { return file_->ReadAt(offset, length, data.data()); }));
      if (got == length && data.back() != mark) return data;
    }
    return arrow::Status::IOError("the store sent fewer than the ", length,
                                  " bytes that were asked for");
  }

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
