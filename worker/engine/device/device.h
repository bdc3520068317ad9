#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quantry::engine {

// What the user asked for: "auto", "cpu", "cuda" (= cuda:0) or "cuda:N".
struct DeviceRequest {
  enum class Kind { kAuto, kCpu, kCuda };
  Kind kind = Kind::kAuto;
  int index = 0;  // of a CUDA device
};

// Throws UserError INVALID_SPEC.
DeviceRequest ParseDevice(std::string_view text);

// The device to compute on. Loads libtorch_cuda.so when a GPU is asked for, or
// with "auto" when one is there: the first that runs a kernel (CPU otherwise). Throws EngineError
// RESOURCE "DEVICE_UNAVAILABLE" saying what is missing: library, driver, or index. A process that
// wants a GPU comes here before anything else asks LibTorch for CUDA, as its seeds do.
at::Device OpenDevice(std::string_view text);

// CPU, then every usable GPU: what tests are run over.
std::vector<at::Device> AvailableDevices();

// Why no GPU can be used: library, driver or hardware that is missing; empty where one can.
std::string CudaProblem();

// Threads of ATen's kernels (0 = all cores) and deterministic algorithms. Call
// once, before the first tensor operation: the same inputs, thread count and
// device model then give the same bytes.
void ConfigureRuntime(int threads);

// For reports and manifests: "cpu" or "cuda:0".
std::string DescribeDevice(const at::Device& device);

// Name and compute capability, as "NVIDIA H200, 9.0": the libraries choose their kernels
// by it. "" for the CPU, "unknown" where the driver does not say.
std::string DeviceModel(const at::Device& device);

// Highest resident set of this process so far, bytes; 0 when unknown.
int64_t PeakRssBytes();

// Highest number of bytes ATen's allocator has held on a GPU; 0 on the CPU.
int64_t PeakDeviceBytes(const at::Device& device);

}  // namespace quantry::engine
