// The imagined GPU's memory and operators (see fake_cuda.cc). Every operator runs on the CPU, on
// copies; what it must not be given it refuses as a GPU would: tensors of two devices at once. Its
// memory is mapped so that nobody can touch it but a copy: a pointer into it that the host
// follows ends the process, as it would with a GPU's.
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

namespace at {
namespace {

thread_local DeviceIndex current = 0;

struct Pages {
  void* data = nullptr;
  size_t bytes = 0;
};

class FakeMemory : public c10::DeviceAllocator {
 public:
  DataPtr allocate(size_t bytes) override {
    const Device device(kCUDA, current);
    if (bytes == 0) return {nullptr, nullptr, &Free, device};
    auto* pages =
        new Pages{mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), bytes};
    TORCH_CHECK(pages->data != MAP_FAILED, "CUDA error: out of memory");
    held_ += static_cast<int64_t>(bytes);
    peak_ = std::max(peak_.load(), held_.load());
    return {pages->data, pages, &Free, device};
  }
  DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* /*to*/, const void* /*from*/, size_t /*bytes*/) const override {
    TORCH_CHECK(false, "nobody copies storages of the imagined GPU");
  }
  bool initialized() override { return true; }
  void emptyCache(MempoolId_t /*pool*/) override {}
  void recordStream(const DataPtr& /*data*/, c10::Stream /*stream*/) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex /*device*/) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak =
        peak_;
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex /*device*/) override {}
  void resetPeakStats(DeviceIndex /*device*/) override { peak_ = held_.load(); }

 private:
  static void Free(void* context) {
    auto* pages = static_cast<Pages*>(context);
    if (pages == nullptr) return;
    munmap(pages->data, pages->bytes);
    held_ -= static_cast<int64_t>(pages->bytes);
    delete pages;
  }
  static inline std::atomic<int64_t> held_{0}, peak_{0};
};

FakeMemory& Memory() {
  static auto* memory = new FakeMemory;
  return *memory;
}

struct Guard : c10::impl::NoOpDeviceGuardImpl<kCUDA> {
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return {kCUDA, current}; }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  Stream getStream(Device device) const noexcept override {
    return Stream(Stream::DEFAULT, device);
  }
  DeviceIndex deviceCount() const noexcept override { return 2; }
  void synchronizeDevice(const DeviceIndex /*device*/) const override {}
};

// Lets the host at a tensor's memory, as a driver's copy does.
class Opened {
 public:
  explicit Opened(const Tensor& tensor) {
    if (tensor.is_cuda()) pages_ = static_cast<Pages*>(tensor.storage().data_ptr().get_context());
    Protect(PROT_READ | PROT_WRITE);
  }
  ~Opened() { Protect(PROT_NONE); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  void Protect(int how) const {
    if (pages_ != nullptr && mprotect(pages_->data, pages_->bytes, how) != 0) std::abort();
  }
  Pages* pages_ = nullptr;
};

Tensor OnHost(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(), tensor.strides(),
                       TensorOptions(tensor.scalar_type()));
}

Tensor& Copy(Tensor& to, const Tensor& from, bool /*non_blocking*/) {
  static std::mutex one_at_a_time;
  if (to.numel() == 0) return to;
  const std::lock_guard lock(one_at_a_time);
  const Opened there(to), here(from);
  OnHost(to).copy_(OnHost(from));
  return to;
}

Tensor Empty(IntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout> /*layout*/,
             std::optional<Device> device, std::optional<bool> /*pinned*/,
             std::optional<MemoryFormat> format) {
  const char* broken = std::getenv("FAKE_CUDA_KERNELS");
  TORCH_CHECK(broken == nullptr, "CUDA error: ", broken);
  const c10::DeviceGuard guard(device.value_or(Device(kCUDA, current)));
  return detail::empty_generic(size, &Memory(), DispatchKeySet(DispatchKey::CUDA),
                               dtype.value_or(kFloat), format);
}

Tensor EmptyStrided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype,
                    std::optional<Layout> /*layout*/, std::optional<Device> device,
                    std::optional<bool> /*pinned*/) {
  const c10::DeviceGuard guard(device.value_or(Device(kCUDA, current)));
  return detail::empty_strided_generic(size, stride, &Memory(), DispatchKeySet(DispatchKey::CUDA),
                                       dtype.value_or(kFloat));
}

// What was there is lost: results are written after it.
const Tensor& Resize(const Tensor& self, IntArrayRef size, std::optional<MemoryFormat> /*format*/) {
  auto* impl = self.unsafeGetTensorImpl();
  int64_t numbers = self.storage_offset();
  numbers += c10::multiply_integers(size);
  const size_t bytes = static_cast<size_t>(numbers) * self.element_size();
  if (impl->storage().nbytes() < bytes) {
    const c10::Storage& storage = impl->unsafe_storage();
    storage.set_data_ptr_noswap(Memory().allocate(bytes));
    storage.set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  return self;
}

Tensor CopyFrom(const Tensor& from, const Tensor& to, bool non_blocking) {
  Tensor target = to;
  return Copy(target, from, non_blocking);
}

Tensor CopyFromAndResize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) Resize(to, from.sizes(), std::nullopt);
  return CopyFrom(from, to, false);
}

// Arguments that a GPU's kernels take from the host: what copies, and indices.
bool TakesHostTensors(const std::string& name) {
  constexpr std::array<const char*, 4> kNames = {"aten::index", "aten::index_put_",
                                                 "aten::_index_put_impl_", "aten::_copy_from"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

void CheckOneDevice(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  if (TakesHostTensors(op.schema().name())) return;
  std::optional<Device> seen;
  const auto check = [&](const Tensor& tensor) {
    if (!tensor.defined() || (tensor.dim() == 0 && tensor.is_cpu())) return;
    TORCH_CHECK(!seen || *seen == tensor.device(),
                "Expected all tensors to be on the same device, but found at least two devices, ",
                *seen, " and ", tensor.device(), "! (", op.schema().name(), ")");
    seen = tensor.device();
  };
  const size_t count = op.schema().arguments().size();
  for (size_t i = stack.size() - count; i < stack.size(); ++i) {
    if (stack[i].isTensor()) check(stack[i].toTensor());
    if (!stack[i].isTensorList()) continue;
    for (const Tensor& tensor : stack[i].toTensorVector()) check(tensor);
  }
}

void Fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  CheckOneDevice(op, *stack);
  native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&Fallback>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", Empty);
  library.impl("empty_strided", EmptyStrided);
  library.impl("copy_", Copy);
  library.impl("_copy_from", CopyFrom);
  library.impl("_copy_from_and_resize", CopyFromAndResize);
  library.impl("resize_", Resize);
  library.impl("as_strided", native::as_strided_tensorimpl);
  library.impl("view", native::view);
  library.impl("_reshape_alias", native::_reshape_alias);
  library.impl("unfold", native::unfold);
  library.impl("set_.source_Storage_storage_offset", native::set_storage_cpu_);
}

[[maybe_unused]] const bool kRegistered = [] {
  c10::SetAllocator(kCUDA, &Memory());
  return true;
}();

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace at
