#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace quantry::engine {

// Limits on a header from somebody else's file. A larger header or count only
// costs memory; a deeper one or a longer name has no use in the format.
struct SafetensorsLimits {
  uint64_t header_bytes = 64ull << 20;
  int json_depth = 4;
  uint64_t tensors = 1'000'000;
  uint64_t name_bytes = 4096;
  uint64_t rank = 8;
};

// One tensor of a file; offsets count from the start of the file.
struct TensorInfo {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;

  int64_t numel() const;
  uint64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // in the order of their data
  std::map<std::string, std::string> metadata;  // "__metadata__"
  uint64_t data_begin = 0;                      // 8 + length of the JSON
};

// Parses the front of a safetensors file. `front` holds at least the first
// min(file_size, 8 + header length) bytes; `path` is for messages. Throws
// UserError INVALID_CHECKPOINT for whatever does not describe exactly the
// file's bytes: no holes, no overlap, no bytes left over, no duplicate keys.
SafetensorsHeader ParseSafetensorsHeader(std::string_view front, uint64_t file_size,
                                         std::string_view path,
                                         const SafetensorsLimits& limits = {});

// "F32" for at::kFloat and so on; empty for a dtype the format lacks.
std::string_view SafetensorsDtypeName(at::ScalarType dtype);

// A file mapped read-only. Opening reads the header only. Thread-safe. Views
// share ownership of the mapping. If somebody truncates the file meanwhile the
// process gets SIGBUS, as with every mapping.
class SafetensorsFile {
 public:
  // Throws UserError INVALID_CHECKPOINT or CHECKPOINT_FORMAT_REFUSED (a pickle
  // or zip in disguise), EngineError ENVIRONMENT "STORAGE_ERROR".
  static std::shared_ptr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const TensorInfo* Find(const std::string& name) const;  // nullptr when absent

  // The stored values in the storage dtype, sharing the mapping (a copy only
  // where the file has them misaligned). Never write to it.
  at::Tensor View(const TensorInfo& info) const;

  // fp32 copy, from F32, F16, BF16 or F64; its pages are released. Throws
  // INVALID_CHECKPOINT for other dtypes, NON_FINITE_WEIGHTS for NaN and Inf.
  at::Tensor LoadFloat(const TensorInfo& info) const;

  // Throws what LoadFloat would, and holds a few MB for it.
  void CheckFinite(const TensorInfo& info) const;

  // Drops the tensor's pages, and up to 2 MiB around them, from this process'
  // resident set; they come back from the page cache when touched again.
  void Release(const TensorInfo& info) const;

 private:
  struct Mapping;
  SafetensorsFile() = default;
  void CheckDense(const TensorInfo& info) const;
  void RefuseNonFinite(const TensorInfo& info, int64_t bad, int64_t all) const;

  std::string path_;
  uint64_t size_ = 0;
  std::shared_ptr<Mapping> mapping_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> index_;
};

// A tensor that will be written.
struct TensorSpec {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
};

uint64_t BytesOf(const TensorSpec& spec);

// Writes one safetensors file as a stream: the header from `specs`, then the
// data of each tensor in the same order. The bytes go to "PATH.partial"; the
// file appears under its own name, synced, only in Finish(). A writer dropped
// before removes the partial file. Not thread-safe. Throws EngineError
// ENVIRONMENT "DISK_FULL" naming path and bytes wanted, or "STORAGE_ERROR".
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::string path, std::vector<TensorSpec> specs,
                    std::map<std::string, std::string> metadata = {{"format", "pt"}});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // The next tensor. Name, dtype and shape must be those of its spec (a
  // programmer's error otherwise: BUG). Any device and strides.
  void Append(const std::string& name, const at::Tensor& tensor);

  // All specs must have been written. Returns the size of the file in bytes.
  uint64_t Finish();

 private:
  void Write(const void* data, uint64_t bytes);

  std::string path_;
  std::string partial_;
  std::vector<TensorSpec> specs_;
  size_t next_ = 0;
  uint64_t total_bytes_ = 0;
  int fd_ = -1;
};

}  // namespace quantry::engine
