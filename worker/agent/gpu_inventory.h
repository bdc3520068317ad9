#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace quantry::agent {

struct GpuDescription {
  std::string uuid;
  std::string model;
  std::int64_t memory_bytes = 0;
  std::string compute_capability;  // "9.0"
};

// A reading of one GPU; negative where the driver has no value.
struct GpuReading {
  std::string uuid;
  std::int64_t memory_used_bytes = -1;
  double utilization_ratio = -1;  // 0..1
  double energy_joules = -1;      // since the driver was loaded
  double temperature_celsius = -1;
};

// The machine's NVIDIA GPUs as its driver sees them. Thread-safe.
class GpuInventory {
 public:
  virtual ~GpuInventory() = default;
  virtual std::vector<GpuDescription> List() const = 0;
  virtual std::vector<GpuReading> Read() const = 0;

  // Loads libnvidia-ml.so.1; where there is none, an inventory without GPUs.
  static std::unique_ptr<GpuInventory> Open();
};

}  // namespace quantry::agent
