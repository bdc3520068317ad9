// Stands in for NVIDIA's driver and LibTorch's CUDA half at once: it lies there as libcuda.so.1,
// and says (DT_SONAME) that it is libtorch_cuda.so, so that a program that loads both by
// name gets it twice. It registers hooks while it is loaded, as the real one does, shows the GPUs
// that CUDA_VISIBLE_DEVICES leaves of two where its cuInit succeeds; what they compute is in
// fake_kernels.cc.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "common/sandbox/testing/driver_steps.h"

extern "C" int cuInit(unsigned int flags);

namespace at {

struct FakeCudaHooks : CUDAHooksInterface {
  explicit FakeCudaHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  bool hasCUDA() const override { return deviceCount() > 0; }
  bool hasCUDART() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return hasCUDA(); }
  // Nothing here draws numbers on a GPU.
  const Generator& getDefaultGenerator(DeviceIndex /*device*/) const override {
    return detail::getDefaultCPUGenerator();
  }
  long versionCUDART() const override { return 13020; }
  DeviceIndex deviceCount() const override {
    if (cuInit(0) != 0) return 0;
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    if (visible == nullptr) return 2;
    const std::string ids = visible;
    return ids.empty() ? 0 : static_cast<DeviceIndex>(1 + std::count(ids.begin(), ids.end(), ','));
  }
};

C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, FakeCudaHooks)

}  // namespace at

// The driver's part: signatures as worker/engine/device/device.cc asks for them.
extern "C" {

int cuInit(unsigned int /*flags*/) {
  using namespace quantry::testing;
  constexpr int kOperatingSystem = 304;
  const bool good = std::getenv("FAKE_CUDA_INIT") == nullptr && NameThread() == 0 &&
                    ListenAbstractly() == 0 && MakeMemoryFile() == 0;
  return good ? 0 : kOperatingSystem;
}

int cuGetErrorString(int /*error*/, const char** text) {
  *text = "OS call failed or operation not supported on this OS";
  return 0;
}

int cuDriverGetVersion(int* version) {
  const char* given = std::getenv("FAKE_CUDA_VERSION");
  *version = given == nullptr ? 13020 : std::atoi(given);
  return 0;
}

int cuDeviceGet(int* handle, int index) {
  *handle = index;
  return 0;
}

int cuDeviceGetName(char* name, int size, int handle) {
  std::snprintf(name, static_cast<size_t>(size), "Imagined GPU %d", handle);
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int /*handle*/) {
  constexpr int kMajor = 75;
  *value = attribute == kMajor ? 9 : 0;
  return 0;
}
}
