#include "worker/engine/pipeline/failure.h"

#include <c10/util/Exception.h>

#include <filesystem>
#include <new>
#include <string>

#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// LibTorch has a type for devices alone; its host allocator throws a plain
// c10::Error with this text.
constexpr char kHostAllocatorFailed[] = "DefaultCPUAllocator: can't allocate memory";

std::string TextOf(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch != nullptr ? torch->what_without_backtrace() : error.what();
}

bool IsOutOfMemory(const std::exception& error, const std::string& text) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
         text.find(kHostAllocatorFailed) != std::string::npos;
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
  return EngineError(FailureClass::kBug, "INTERNAL",
                     StrCat("unexpected failure, please report it: ", text));
}

}  // namespace quantry::engine
