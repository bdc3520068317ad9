#include "worker/engine/pipeline/failure.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <new>
#include <string>

#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// LibTorch has a type for its allocator of devices alone; its host allocator and what
// CUDA's libraries allocate themselves end in other errors with these texts.
constexpr const char* kNoMemory[] = {"DefaultCPUAllocator: can't allocate memory",
                                     "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
                                     "CUSOLVER_STATUS_ALLOC_FAILED"};

// cudaError_t: a driver too old or that does not start, no GPU, one that others hold, that no
// kernel was built for, that fell off or lost memory cells.
constexpr int32_t kDeviceErrors[] = {3, 35, 46, 100, 101, 209, 214, 222, 304, 802, 803, 804, 999};

std::string TextOf(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch != nullptr ? torch->what_without_backtrace() : error.what();
}

bool IsOutOfMemory(const std::exception& error, const std::string& text) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
         std::any_of(std::begin(kNoMemory), std::end(kNoMemory),
                     [&](const char* told) { return text.find(told) != std::string::npos; });
}

bool IsOfTheDevice(const std::exception& error) {
  const auto* accelerator = dynamic_cast<const c10::AcceleratorError*>(&error);
  return accelerator != nullptr &&
         std::find(std::begin(kDeviceErrors), std::end(kDeviceErrors),
                   accelerator->get_error_code()) != std::end(kDeviceErrors);
}

}  // namespace

EngineError Translate(const std::exception& error) {
  if (const auto* own = dynamic_cast<const EngineError*>(&error)) return *own;
  if (const auto* files = dynamic_cast<const std::filesystem::filesystem_error*>(&error)) {
    return EngineError(FailureClass::kEnvironment, "WRITE_FAILED", files->what(),
                       {{"path", files->path1().string()}});
  }
  const std::string text = TextOf(error);
  if (IsOutOfMemory(error, text)) {
    return EngineError(FailureClass::kResource, "OUT_OF_MEMORY",
                       StrCat("not enough memory; ask for a machine with more, or use fewer or "
                              "shorter calibration windows: ",
                              text));
  }
  if (IsOfTheDevice(error)) {
    return EngineError(FailureClass::kResource, "DEVICE_UNAVAILABLE",
                       StrCat("the GPU cannot be used: ", text));
  }
  return EngineError(FailureClass::kBug, "INTERNAL",
                     StrCat("unexpected failure, please report it: ", text));
}

}  // namespace quantry::engine
