#include "worker/engine/device/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <thread>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

EngineError Unavailable(const std::string& message) {
  return EngineError(FailureClass::kResource, "DEVICE_UNAVAILABLE", message);
}

constexpr char kDriver[] = "libcuda.so.1";

// Loads LibTorch's CUDA half beside libtorch_cpu; it registers its kernels
// while it loads. Empty when all is well, else what is missing. Done once.
// Nothing may ask LibTorch for CUDA before, at::hasCUDA() included: it looks for
// that half once, and takes what it found for good.
const std::string& LoadCudaLibrary() {
  static const std::string problem = [] {
    // The driver first: without it the big library is 1 GB for nothing.
    if (::dlopen(kDriver, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      return StrCat("the NVIDIA driver is not installed (", ::dlerror(), ")");
    }
    if (::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      return StrCat("LibTorch's CUDA library cannot be loaded (", ::dlerror(), ")");
    }
    if (at::detail::getCUDAHooks().hasCUDART()) return std::string();
    return std::string("libtorch_cuda.so was loaded, but after LibTorch had looked for it");
  }();
  return problem;
}

// A function of the driver's C interface; its header comes with the CUDA toolkit only. What it
// returns (CUresult), nullopt without such a function.
template <typename... Arguments>
std::optional<int> AskDriver(const char* name, Arguments... arguments) {
  void* driver = ::dlopen(kDriver, RTLD_NOW | RTLD_NOLOAD);
  if (driver == nullptr) return std::nullopt;
  const auto function = reinterpret_cast<int (*)(Arguments...)>(::dlsym(driver, name));
  std::optional<int> result;
  if (function != nullptr) result = function(arguments...);
  ::dlclose(driver);
  return result;
}

// Why a driver that is loaded shows no GPU: LibTorch only says that there is none.
std::string DriverProblem() {
  constexpr int kMajor = 1000;  // 13020 is CUDA 13.2
  int version = 0;
  const auto wanted = static_cast<int>(at::detail::getCUDAHooks().versionCUDART());
  if (AskDriver("cuDriverGetVersion", &version) == 0 && version / kMajor < wanted / kMajor) {
    return StrCat("the NVIDIA driver is one for CUDA ", version / kMajor, ".",
                  version % kMajor / 10, ", LibTorch's libraries want ", wanted / kMajor,
                  ": update it");
  }
  const std::optional<int> started = AskDriver("cuInit", 0U);
  if (!started || *started == 0) return "the NVIDIA driver shows no GPU";
  const char* text = nullptr;
  const bool told = AskDriver("cuGetErrorString", *started, &text) == 0 && text != nullptr;
  return StrCat("the NVIDIA driver does not start: error ", *started, told ? ", " : "",
                told ? text : "");
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
  if (count == 0) {
    throw Unavailable(StrCat("device cuda:", index, " is asked for, but ", DriverProblem()));
  }
  if (index >= count) {
    throw Unavailable(StrCat("device cuda:", index, " is asked for, ", count,
                             " GPUs are usable here (their numbers start at 0)"));
  }
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
  try {
    at::globalContext().lazyInitDevice(at::kCUDA);
    // Held by somebody, or without code for such a model: seen by the first kernel alone.
    at::empty({1}, at::TensorOptions(device)).fill_(1).item<float>();
  } catch (const c10::Error& error) {
    throw Unavailable(StrCat("cuda:", index, " cannot be used: ", error.what_without_backtrace()));
  }
  return device;
}

// nullopt where it cannot be used.
std::optional<at::Device> TryCuda(int index) {
  try {
    return OpenCuda(index);
  } catch (const EngineError&) {
    return std::nullopt;
  }
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
  for (int i = 0; i < CudaDeviceCount(); ++i) {
    if (const auto device = TryCuda(i)) return *device;
  }
  return at::kCPU;
}

std::vector<at::Device> AvailableDevices() {
  std::vector<at::Device> devices = {at::kCPU};
  for (int i = 0; i < CudaDeviceCount(); ++i) {
    if (const auto device = TryCuda(i)) devices.push_back(*device);
  }
  return devices;
}

std::string CudaProblem() {
  if (!LoadCudaLibrary().empty()) return LoadCudaLibrary();
  if (CudaDeviceCount() == 0) return DriverProblem();
  std::string first;
  for (int i = 0; i < CudaDeviceCount(); ++i) {
    try {
      OpenCuda(i);
      return "";
    } catch (const EngineError& error) {
      if (first.empty()) first = error.what();
    }
  }
  return first;
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

std::string DeviceModel(const at::Device& device) {
  if (!device.is_cuda()) return "";
  constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
  int handle = 0, major = 0, minor = 0;
  std::array<char, 128> name = {};
  const auto size = static_cast<int>(name.size()) - 1;
  const bool known = AskDriver("cuDeviceGet", &handle, static_cast<int>(device.index())) == 0 &&
                     AskDriver("cuDeviceGetName", name.data(), size, handle) == 0 &&
                     AskDriver("cuDeviceGetAttribute", &major, kMajor, handle) == 0 &&
                     AskDriver("cuDeviceGetAttribute", &minor, kMinor, handle) == 0;
  return known ? StrCat(name.data(), ", ", major, ".", minor) : "unknown";
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
