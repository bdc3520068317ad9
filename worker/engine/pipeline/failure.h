#pragma once

#include <exception>

#include "worker/engine/base/error.h"

namespace quantry::engine {

// The error an exception stands for, as users are told of it: an EngineError
// is taken as it is, a failed allocation of the host or a device is RESOURCE
// "OUT_OF_MEMORY", one of std::filesystem ENVIRONMENT "WRITE_FAILED", anything
// else BUG "INTERNAL". LibTorch's texts come without their C++ stack.
EngineError Translate(const std::exception& error);

}  // namespace quantry::engine
