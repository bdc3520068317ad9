#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/model/safetensors.h"

namespace quantry::engine {
namespace {

// How far from a touched page the kernel maps others of the page cache: 64 KiB,
// or a large folio.
constexpr uint64_t kFaultAround = uint64_t{2} << 20;

[[noreturn]] void ThrowReadError(const std::string& path) {
  const int error = errno;
  if (error == ENOENT) {
    throw UserError("INVALID_CHECKPOINT", StrCat("there is no file ", path), {{"path", path}});
  }
  throw EngineError(FailureClass::kEnvironment, "STORAGE_ERROR",
                    StrCat("cannot read ", path, ": ", std::strerror(error)), {{"path", path}});
}

// Pickles and zip archives (torch.save) under another suffix.
void RefusePickle(std::string_view front, const std::string& path) {
  const bool zip = front.substr(0, 4) == "PK\x03\x04";
  const bool pickle = front.size() >= 2 && front[0] == '\x80' && front[1] >= 2 && front[1] <= 5;
  if (!zip && !pickle) return;
  // A header length may look like a pickle's first two bytes; JSON tells.
  if (!zip && front.size() > 8 && front[8] == '{') return;
  throw UserError("CHECKPOINT_FORMAT_REFUSED",
                  StrCat(path, " is a ", zip ? "zip archive" : "pickle",
                         ", which can run code when it is loaded. Convert the checkpoint: "
                         "model.save_pretrained(DIR, safe_serialization=True)"),
                  {{"path", path}});
}

// By the exponent bits, without a temporary tensor. values: fp32, contiguous.
int64_t CountNonFinite(const at::Tensor& values) {
  constexpr uint32_t kExponent = 0x7f800000;
  const auto* data = static_cast<const float*>(values.const_data_ptr());
  int64_t count = 0;
  for (int64_t i = 0, n = values.numel(); i < n; ++i) {
    count += (std::bit_cast<uint32_t>(data[i]) & kExponent) == kExponent;
  }
  return count;
}

}  // namespace

struct SafetensorsFile::Mapping {
  Mapping(void* start, uint64_t length) : address(start), bytes(length) {}
  ~Mapping() {
    if (address != nullptr) ::munmap(address, bytes);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const char* at(uint64_t offset) const { return static_cast<const char*>(address) + offset; }

  void* address;
  uint64_t bytes;
};

std::shared_ptr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) ThrowReadError(path);
  struct stat status = {};
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  if (!regular || status.st_size == 0) {
    ::close(fd);
    throw UserError("INVALID_CHECKPOINT",
                    StrCat(path, regular ? " is empty" : " is not a regular file"),
                    {{"path", path}});
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  ::close(fd);
  if (address == MAP_FAILED) ThrowReadError(path);

  std::shared_ptr<SafetensorsFile> file(new SafetensorsFile());
  file->path_ = path;
  file->size_ = size;
  file->mapping_ = std::make_shared<Mapping>(address, size);
  const std::string_view front(file->mapping_->at(0), size);
  RefusePickle(front.substr(0, 16), path);
  file->header_ = ParseSafetensorsHeader(front, size, path);
  for (size_t i = 0; i < file->header_.tensors.size(); ++i) {
    file->index_.emplace(file->header_.tensors[i].name, i);
  }
  ::madvise(address, file->header_.data_begin, MADV_DONTNEED);
  return file;
}

const TensorInfo* SafetensorsFile::Find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &header_.tensors[it->second];
}

at::Tensor SafetensorsFile::View(const TensorInfo& info) const {
  const at::TensorOptions options = at::TensorOptions().dtype(info.dtype);
  if (info.bytes() == 0) return at::empty(info.shape, options);
  const char* data = mapping_->at(info.begin);
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(info.dtype) != 0) {
    at::Tensor copy = at::empty(info.shape, options);
    std::memcpy(copy.data_ptr(), data, info.bytes());
    return copy;
  }
  // from_blob wants a mutable pointer; the mapping is read-only all the same.
  auto keep = mapping_;
  return at::from_blob(
      const_cast<char*>(data), info.shape, [keep](void*) {}, options);
}

void SafetensorsFile::CheckDense(const TensorInfo& info) const {
  const at::ScalarType dtype = info.dtype;
  if (dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kDouble) {
    return;
  }
  throw UserError(
      "INVALID_CHECKPOINT",
      StrCat("tensor '", Printable(info.name), "' in ", path_, " has dtype ",
             SafetensorsDtypeName(dtype), ", a dense weight must be F32, F16, BF16 or F64"),
      {{"tensor", info.name}, {"dtype", std::string(SafetensorsDtypeName(dtype))}});
}

void SafetensorsFile::RefuseNonFinite(const TensorInfo& info, int64_t bad, int64_t all) const {
  if (bad == 0) return;
  throw UserError(
      "NON_FINITE_WEIGHTS",
      StrCat("tensor '", Printable(info.name), "' in ", path_, " has ", bad, " of ", all,
             " values which are NaN or infinite (in fp32): the checkpoint is damaged "
             "or was saved from a diverged run"),
      {{"tensor", info.name}, {"path", path_}});
}

at::Tensor SafetensorsFile::LoadFloat(const TensorInfo& info) const {
  CheckDense(info);
  at::Tensor values = View(info).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  Release(info);
  RefuseNonFinite(info, CountNonFinite(values), values.numel());
  return values;
}

void SafetensorsFile::CheckFinite(const TensorInfo& info) const {
  CheckDense(info);
  constexpr int64_t kAtOnce = int64_t{1} << 20;
  const at::Tensor values = View(info).view(-1);
  int64_t bad = 0;
  for (int64_t first = 0; first < values.numel(); first += kAtOnce) {
    bad += CountNonFinite(
        values.slice(0, first, std::min(first + kAtOnce, values.numel())).to(at::kFloat));
  }
  Release(info);
  RefuseNonFinite(info, bad, values.numel());
}

void SafetensorsFile::Release(const TensorInfo& info) const {
  // Touching this tensor brought back neighbours released before.
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = (std::max(info.begin, kFaultAround) - kFaultAround) / page * page;
  const uint64_t end = std::min(info.end + kFaultAround, size_);
  if (end > begin) {
    ::madvise(static_cast<char*>(mapping_->address) + begin, end - begin, MADV_DONTNEED);
  }
}

}  // namespace quantry::engine
