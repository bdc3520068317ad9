// Stands in for NVIDIA's driver and LibTorch's CUDA half at once: it lies there as libcuda.so.1,
// and says (DT_SONAME) that it is libtorch_cuda.so, so that a program that loads both by
// name gets it twice. It registers hooks while it is loaded, as the real one does, shows the GPUs
// that CUDA_VISIBLE_DEVICES leaves of two, and computes nothing.
#include <ATen/detail/CUDAHooksInterface.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace at {

struct FakeCudaHooks : CUDAHooksInterface {
  explicit FakeCudaHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
  bool hasCUDA() const override { return deviceCount() > 0; }
  bool hasCUDART() const override { return true; }
  DeviceIndex deviceCount() const override {
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
