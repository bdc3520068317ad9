#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "worker/engine/device/device.h"
#include "worker/engine/nn/products.h"

namespace quantry::engine {

// What the engine's benchmarks share: --device, and a clock that waits for it.

// Takes "OPTION VALUE" out of the arguments.
inline std::string TakeOption(int& argc, char** argv, const std::string& option,
                              std::string value) {
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (argv[i] == option && i + 1 < argc) {
      value = argv[++i];
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  return value;
}

// Takes an option without a value out of the arguments; whether it was there.
inline bool TakeFlag(int& argc, char** argv, const std::string& flag) {
  char** const end = std::remove(argv + 1, argv + argc, flag);
  const bool found = end != argv + argc;
  argc = static_cast<int>(end - argv);
  return found;
}

// Takes "--device NAME" out of the arguments; "cpu" when it is not there. A name
// for OpenDevice, after ConfigureRuntime.
inline std::string TakeDevice(int& argc, char** argv) {
  return TakeOption(argc, argv, "--device", "cpu");
}

// Takes "--compute-dtype NAME" out of the arguments; float32 when it is not there.
inline ComputeDtype TakeComputeDtype(int& argc, char** argv) {
  const std::string name = TakeOption(argc, argv, "--compute-dtype", "float32");
  if (name != "float32" && name != "bfloat16") {
    std::fprintf(stderr, "--compute-dtype is float32 or bfloat16, got %s\n", name.c_str());
    std::exit(2);
  }
  return name == "bfloat16" ? ComputeDtype::kBfloat16 : ComputeDtype::kFloat32;
}

// Seconds of a steady clock, read once a GPU has done all it was given.
inline double SecondsWhenIdle(const at::Device& device) {
  if (!device.is_cpu()) {
    c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace quantry::engine
