#include "worker/agent/gpu_inventory.h"

#include <dlfcn.h>

#include <array>

namespace quantry::agent {
namespace {

// The part of NVML's C interface used here; its library comes with the driver,
// its header only with the CUDA toolkit. Names and layouts are NVML's, version
// 2 entry points where there are any.
using Device = void*;
struct NvmlMemory {
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};
struct NvmlUtilization {
  unsigned int gpu;
  unsigned int memory;
};
constexpr int kNvmlSuccess = 0;
constexpr int kTemperatureGpu = 0;

class NoGpus : public GpuInventory {
 public:
  std::vector<GpuDescription> List() const override { return {}; }
  std::vector<GpuReading> Read() const override { return {}; }
};

class NvmlInventory : public GpuInventory {
 public:
  // False when the library or one of the needed functions is absent.
  bool Load() {
    library_ = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) return false;
    const bool complete = Bind(init_, "nvmlInit_v2") && Bind(shutdown_, "nvmlShutdown") &&
                          Bind(count_, "nvmlDeviceGetCount_v2") &&
                          Bind(handle_, "nvmlDeviceGetHandleByIndex_v2") &&
                          Bind(uuid_, "nvmlDeviceGetUUID") && Bind(name_, "nvmlDeviceGetName") &&
                          Bind(memory_, "nvmlDeviceGetMemoryInfo");
    Bind(capability_, "nvmlDeviceGetCudaComputeCapability");
    Bind(utilization_, "nvmlDeviceGetUtilizationRates");
    Bind(energy_, "nvmlDeviceGetTotalEnergyConsumption");
    Bind(temperature_, "nvmlDeviceGetTemperature");
    started_ = complete && init_() == kNvmlSuccess;
    return started_;
  }

  ~NvmlInventory() override {
    if (started_) shutdown_();
    if (library_ != nullptr) dlclose(library_);
  }

  std::vector<GpuDescription> List() const override {
    std::vector<GpuDescription> gpus;
    for (const Device device : Devices()) {
      GpuDescription gpu;
      gpu.uuid = Text(uuid_, device);
      gpu.model = Text(name_, device);
      if (NvmlMemory memory{}; memory_(device, &memory) == kNvmlSuccess) {
        gpu.memory_bytes = static_cast<std::int64_t>(memory.total);
      }
      int major = 0, minor = 0;
      if (capability_ != nullptr && capability_(device, &major, &minor) == kNvmlSuccess) {
        gpu.compute_capability = std::to_string(major) + "." + std::to_string(minor);
      }
      gpus.push_back(std::move(gpu));
    }
    return gpus;
  }

  std::vector<GpuReading> Read() const override {
    std::vector<GpuReading> readings;
    for (const Device device : Devices()) {
      GpuReading reading;
      reading.uuid = Text(uuid_, device);
      if (NvmlMemory memory{}; memory_(device, &memory) == kNvmlSuccess) {
        reading.memory_used_bytes = static_cast<std::int64_t>(memory.used);
      }
      NvmlUtilization use{};
      if (utilization_ != nullptr && utilization_(device, &use) == kNvmlSuccess) {
        reading.utilization_ratio = use.gpu / 100.0;
      }
      unsigned long long millijoules = 0;
      if (energy_ != nullptr && energy_(device, &millijoules) == kNvmlSuccess) {
        reading.energy_joules = static_cast<double>(millijoules) / 1000.0;
      }
      unsigned int celsius = 0;
      if (temperature_ != nullptr &&
          temperature_(device, kTemperatureGpu, &celsius) == kNvmlSuccess) {
        reading.temperature_celsius = celsius;
      }
      readings.push_back(std::move(reading));
    }
    return readings;
  }

 private:
  template <typename Function>
  bool Bind(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    return function != nullptr;
  }

  std::vector<Device> Devices() const {
    std::vector<Device> devices;
    unsigned int count = 0;
    if (count_(&count) != kNvmlSuccess) return devices;
    for (unsigned int i = 0; i < count; ++i) {
      if (Device device = nullptr; handle_(i, &device) == kNvmlSuccess) devices.push_back(device);
    }
    return devices;
  }

  using TextFunction = int (*)(Device, char*, unsigned int);
  static std::string Text(TextFunction function, Device device) {
    std::array<char, 96> text{};
    if (function(device, text.data(), text.size() - 1) != kNvmlSuccess) return "";
    return text.data();
  }

  void* library_ = nullptr;
  bool started_ = false;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*count_)(unsigned int*) = nullptr;
  int (*handle_)(unsigned int, Device*) = nullptr;
  TextFunction uuid_ = nullptr;
  TextFunction name_ = nullptr;
  int (*memory_)(Device, NvmlMemory*) = nullptr;
  int (*capability_)(Device, int*, int*) = nullptr;
  int (*utilization_)(Device, NvmlUtilization*) = nullptr;
  int (*energy_)(Device, unsigned long long*) = nullptr;
  int (*temperature_)(Device, int, unsigned int*) = nullptr;
};

}  // namespace

std::unique_ptr<GpuInventory> GpuInventory::Open() {
  auto nvml = std::make_unique<NvmlInventory>();
  if (nvml->Load()) return nvml;
  return std::make_unique<NoGpus>();
}

}  // namespace quantry::agent
