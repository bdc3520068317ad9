// Stands in for NVIDIA's driver and LibTorch's CUDA half at once: it lies there as libcuda.so.1,
// and says (DT_SONAME) that it is libtorch_cuda.so, so that a program that loads both by
// name gets it twice. It registers hooks while it is loaded, as the real one does, shows the GPUs
// that CUDA_VISIBLE_DEVICES leaves of two where its cuInit succeeds; what they compute is in
// fake_kernels.cc.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <semaphore>
#include <string>
#include <thread>

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

namespace {

// Steps of the real one that a confinement may refuse; it fails with the first of them.
bool NamesAThread() {
  std::binary_semaphore named(0);
  std::thread other([&] { named.acquire(); });
  const bool good = pthread_setname_np(other.native_handle(), "cuda") == 0;
  named.release();
  other.join();
  return good;
}

bool Listens() {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = "fake-cuda-" + std::to_string(getpid()) + std::to_string(fd);
  name.copy(address.sun_path + 1, name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const bool good = fd >= 0 && bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0 &&
                    listen(fd, 1) == 0;
  if (fd >= 0) close(fd);
  return good;
}

bool HasAMemoryFile() {
  const int fd = memfd_create("cuda", MFD_CLOEXEC);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

}  // namespace

// The driver's part: signatures as worker/engine/device/device.cc asks for them.
extern "C" {

int cuInit(unsigned int /*flags*/) {
  constexpr int kOperatingSystem = 304;
  const bool good =
      std::getenv("FAKE_CUDA_INIT") == nullptr && NamesAThread() && Listens() && HasAMemoryFile();
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
