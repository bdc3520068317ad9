#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

// Options that others leave without effect: one list for the server, which
// refuses them at submit, and the engine.
namespace quantry::idle_options {

// {name, method, idle, why}: `method` is taken; with any one of `idle`, {JSON
// pointer into it: value}, it is refused with `why`.
inline nlohmann::json Cases() {
  std::ifstream file(QUANTRY_SOURCE_DIR "/tests/conformance/idle_options.json");
  return nlohmann::json::parse(file);
}

// ("spec.method", "/awq/scale_grid_points") -> "spec.method.awq.scale_grid_points"
inline std::string FieldOf(const std::string& method, std::string pointer) {
  for (char& c : pointer) c = c == '/' ? '.' : c;
  return method + pointer;
}

}  // namespace quantry::idle_options
