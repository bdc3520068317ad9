#include "worker/engine/device/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <thread>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

EngineError Unavailable(const std::string& message) {
  return EngineError(FailureClass::kResource, "DEVICE_UNAVAILABLE", message);
}

// Loads LibTorch's CUDA half beside libtorch_cpu; it registers its kernels
// while it loads. Empty when all is well, else what is missing. Done once.
const std::string& LoadCudaLibrary() {
  static const std::string problem = [] {
    if (at::hasCUDA()) return std::string();
    // The driver first: without it the big library is 1 GB for nothing.
    if (::dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      return StrCat("the NVIDIA driver is not installed (", ::dlerror(), ")");
    }
    if (::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      return StrCat("LibTorch's CUDA library cannot be loaded (", ::dlerror(), ")");
    }
    return at::hasCUDA() ? std::string()
                         : std::string("libtorch_cuda.so was loaded but registered nothing");
  }();
  return problem;
}

int CudaDeviceCount() {
  if (!LoadCudaLibrary().empty()) return 0;
  try {
    return at::detail::getCUDAHooks().deviceCount();
  } catch (const std::exception&) {
    return 0;
  }
}

at::Device OpenCuda(int index) {
  if (!LoadCudaLibrary().empty()) {
    throw Unavailable(StrCat("device cuda:", index, " is asked for, but ", LoadCudaLibrary(),
                             "; use device cpu, or run where a GPU is"));
  }
  const int count = CudaDeviceCount();
  if (index >= count) {
    throw Unavailable(StrCat("device cuda:", index, " is asked for, ", count,
                             " GPUs are usable here (their numbers start at 0)"));
  }
  at::globalContext().lazyInitDevice(at::kCUDA);
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

}  // namespace

DeviceRequest ParseDevice(std::string_view text) {
  if (text.empty() || text == "auto") return {};
  if (text == "cpu") return {DeviceRequest::Kind::kCpu, 0};
  if (text == "cuda") return {DeviceRequest::Kind::kCuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (text.substr(0, kPrefix.size()) == kPrefix) {
    const std::string_view number = text.substr(kPrefix.size());
    uint8_t index = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), index);
    const bool whole = error == std::errc() && end == number.data() + number.size();
    if (whole && index <= std::numeric_limits<at::DeviceIndex>::max()) {
      return {DeviceRequest::Kind::kCuda, index};
    }
  }
  throw UserError("INVALID_SPEC",
                  StrCat("device '", Printable(text, 40), "' is not auto, cpu, cuda or cuda:N"),
                  {{"device", std::string(text.substr(0, 40))}});
}

at::Device OpenDevice(std::string_view text) {
  const DeviceRequest request = ParseDevice(text);
  if (request.kind == DeviceRequest::Kind::kCpu) return at::kCPU;
  if (request.kind == DeviceRequest::Kind::kCuda) return OpenCuda(request.index);
  return CudaDeviceCount() > 0 ? OpenCuda(0) : at::Device(at::kCPU);
}

std::vector<at::Device> AvailableDevices() {
  std::vector<at::Device> devices = {at::kCPU};
  for (int i = 0; i < CudaDeviceCount(); ++i) devices.push_back(OpenCuda(i));
  return devices;
}

std::string CudaProblem() {
  if (!LoadCudaLibrary().empty()) return LoadCudaLibrary();
  return CudaDeviceCount() > 0 ? "" : "the NVIDIA driver shows no GPU";
}

void ConfigureRuntime(int threads) {
  const auto cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  at::set_num_threads(threads > 0 ? threads : cores);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  // cuBLAS is deterministic only with a fixed workspace.
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setFloat32MatmulPrecision("highest");
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
}

std::string DescribeDevice(const at::Device& device) {
  if (!device.is_cuda()) return "cpu";
  return device.str();
}

int64_t PeakRssBytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    int64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib * 1024;
  }
  return 0;
}

int64_t PeakDeviceBytes(const at::Device& device) {
  if (!device.is_cuda()) return 0;
  auto* allocator = at::getDeviceAllocator(at::kCUDA);
  const auto stats = allocator->getDeviceStats(device.index());
  constexpr auto kAggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return stats.allocated_bytes[kAggregate].peak;
}

}  // namespace quantry::engine
