#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <string>

#include "worker/engine/device/device.h"

namespace quantry::engine {

// What the engine's benchmarks share: --device, and a clock that waits for it.

// Takes "--device NAME" out of the arguments; "cpu" when it is not there. A name
// for OpenDevice, after ConfigureRuntime.
inline std::string TakeDevice(int& argc, char** argv) {
  std::string name = "cpu";
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--device" && i + 1 < argc) {
      name = argv[++i];
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  return name;
}

// Seconds of a steady clock, read once a GPU has done all it was given.
inline double SecondsWhenIdle(const at::Device& device) {
  if (!device.is_cpu()) {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace quantry::engine
