#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

// Of a config.json or another description of a packed folder.
inline constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

// Runs `body`, which reads a packed folder `dir` of somebody else. What its
// metadata lacks and tensors that do not fit each other (to the readers they
// share with verification OUTPUT_VERIFICATION_FAILED) become UserError
// INVALID_CHECKPOINT naming the folder.
template <typename Body>
auto CheckedInput(const std::string& dir, const Body& body) {
  try {
    return body();
  } catch (const nlohmann::json::exception& error) {
    throw UserError("INVALID_CHECKPOINT",
                    StrCat(dir, ": metadata of the container: ", error.what()), {{"path", dir}});
  } catch (const EngineError& error) {
    if (error.reason != "OUTPUT_VERIFICATION_FAILED") throw;
    throw UserError("INVALID_CHECKPOINT", StrCat(dir, ": ", error.what()), {{"path", dir}});
  }
}

}  // namespace quantry::engine
