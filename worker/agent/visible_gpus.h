#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "worker/agent/gpu_inventory.h"

namespace quantry::agent {

// CUDA_VISIBLE_DEVICES as CUDA reads it: numbers in the order of `all` (NVML's, which is CUDA's
// where CUDA_DEVICE_ORDER is PCI_BUS_ID) or beginnings of UUIDs, up to the first that names no
// GPU. None where one is named twice. Absent: all.
std::vector<GpuDescription> VisibleGpus(const std::vector<GpuDescription>& all,
                                        const std::optional<std::string>& visible);

// Those GPUs of a machine alone. Thread-safe.
class VisibleInventory : public GpuInventory {
 public:
  VisibleInventory(std::unique_ptr<GpuInventory> all, const std::optional<std::string>& visible)
      : all_(std::move(all)), gpus_(VisibleGpus(all_->List(), visible)) {}
  std::vector<GpuDescription> List() const override { return gpus_; }
  std::vector<GpuReading> Read() const override;

 private:
  const std::unique_ptr<GpuInventory> all_;
  const std::vector<GpuDescription> gpus_;
};

// The CUDA_VISIBLE_DEVICES that leaves only the GPU which is `index` under `visible`; "" where
// that has none.
std::string OnlyVisible(const std::optional<std::string>& visible, int index);

}  // namespace quantry::agent
