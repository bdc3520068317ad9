#pragma once

#include <cstdint>
#include <functional>

namespace quantry::engine {

// Called by long work on files with the bytes it has got through since its last call.
using OnBytes = std::function<void(uint64_t bytes)>;

}  // namespace quantry::engine
