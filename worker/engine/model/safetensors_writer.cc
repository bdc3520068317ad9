#include <unistd.h>

#include <nlohmann/json.hpp>

#include "worker/engine/base/checked.h"
#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine {
namespace {

EngineError Bug(const std::string& message) {
  return EngineError(FailureClass::kBug, "INTERNAL", message);
}

// Length and JSON, padded with spaces so that the data starts at a multiple of
// eight bytes.
std::string HeaderBytes(const std::vector<TensorSpec>& specs,
                        const std::map<std::string, std::string>& metadata, uint64_t* data_bytes) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const TensorSpec& spec : specs) {
    if (SafetensorsDtypeName(spec.dtype).empty()) {
      throw Bug(StrCat("safetensors has no dtype for '", spec.name, "'"));
    }
    const uint64_t end = offset + BytesOf(spec);
    header[spec.name] = {{"dtype", std::string(SafetensorsDtypeName(spec.dtype))},
                         {"shape", spec.shape},
                         {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string bytes;
  for (uint64_t i = 0, n = text.size(); i < 8; ++i) bytes += static_cast<char>(n >> (8 * i) & 0xff);
  *data_bytes = offset;
  return bytes + text;
}

}  // namespace

uint64_t BytesOf(const TensorSpec& spec) {
  uint64_t bytes = c10::elementSize(spec.dtype);
  for (const int64_t n : spec.shape) {
    const auto product = CheckedMultiply(bytes, static_cast<uint64_t>(n));
    if (n < 0 || !product) throw Bug(StrCat("shape of '", spec.name, "' overflows"));
    bytes = *product;
  }
  return bytes;
}

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<TensorSpec> specs,
                                     std::map<std::string, std::string> metadata)
    : path_(std::move(path)), partial_(path_ + ".partial"), specs_(std::move(specs)) {
  uint64_t data_bytes = 0;
  const std::string header = HeaderBytes(specs_, metadata, &data_bytes);
  total_bytes_ = header.size() + data_bytes;
  fd_ = CreatePartial(partial_);
  try {
    Write(header.data(), header.size());
  } catch (...) {
    ::close(fd_);
    ::unlink(partial_.c_str());
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

void SafetensorsWriter::Write(const void* data, uint64_t bytes) {
  WriteFully(fd_, data, bytes, path_, total_bytes_);
}

void SafetensorsWriter::Append(const std::string& name, const at::Tensor& tensor) {
  if (next_ >= specs_.size()) throw Bug(StrCat("tensor '", name, "' was not announced"));
  const TensorSpec& spec = specs_[next_];
  if (spec.name != name || spec.dtype != tensor.scalar_type() ||
      !tensor.sizes().equals(spec.shape)) {
    throw Bug(StrCat("tensor '", name, "' [", Join(tensor.sizes()), "] ", tensor.scalar_type(),
                     " written where '", spec.name, "' [", Join(spec.shape), "] ", spec.dtype,
                     " was announced"));
  }
  const at::Tensor flat = tensor.to(at::kCPU).contiguous();
  Write(flat.data_ptr(), flat.nbytes());
  ++next_;
}

uint64_t SafetensorsWriter::Finish() {
  if (next_ != specs_.size()) {
    throw Bug(StrCat(specs_.size() - next_, " announced tensors were not written to ", path_));
  }
  const int fd = fd_;
  fd_ = -1;
  CommitFile(fd, partial_, path_);
  return total_bytes_;
}

}  // namespace quantry::engine
