#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

// Of a config.json or another description of a packed folder.
inline constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

// Of a dense weight: the bytes of one of this size in both ways still fit.
inline constexpr int64_t kMostSide = int64_t{1} << 31;

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

// What is wrong with the metadata's word on how a linear is held, by its `kind`
// (none = "grid"), where the container's schema wants `wanted`; empty when
// nothing is.
inline std::string WrongKind(const std::string& module, const nlohmann::json& described,
                             std::string_view wanted) {
  const bool is_object = described.is_object();
  const nlohmann::json got =
      is_object ? described.value("kind", nlohmann::json("grid")) : described;
  if (is_object && got == nlohmann::json(wanted)) return "";
  return StrCat("metadata of the container: ", Printable(module), ": wanted the kind \"", wanted,
                "\", as its schema has it, got ",
                Printable(got.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
}

}  // namespace quantry::engine
