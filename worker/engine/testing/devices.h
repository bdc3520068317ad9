#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "worker/engine/device/device.h"

namespace quantry::engine::test {

// What tests of computations are run over, by name: in Combine, or alone.
inline const auto kDevices = ::testing::Values("cpu", "cuda");

// Before the first test: LibTorch must not be asked for CUDA before it is loaded.
inline const std::vector<at::Device> kAvailable = AvailableDevices();

// The first device of that name; nullopt where the machine has no GPU: skip.
inline std::optional<at::Device> FindTestDevice(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  return kAvailable.size() > 1 ? std::optional(kAvailable[1]) : std::nullopt;
}

// A fixture's SetUp: sets `device`, or skips the test.
#define QUANTRY_TAKE_DEVICE(device, name)                             \
  do {                                                                \
    const auto found = ::quantry::engine::test::FindTestDevice(name); \
    if (!found) GTEST_SKIP() << "no " << (name) << " device here";    \
    (device) = *found;                                                \
  } while (false)

}  // namespace quantry::engine::test
