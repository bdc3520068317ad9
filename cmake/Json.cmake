# nlohmann-json, header-only, as quantry::json: for the engine, the CLI and the status page.
include_guard(GLOBAL)
find_path(QUANTRY_JSON_INCLUDE nlohmann/json.hpp REQUIRED
  HINTS "${QUANTRY_DEPS_DIR}/include" DOC "nlohmann-json headers")
add_library(quantry::json INTERFACE IMPORTED GLOBAL)
target_include_directories(quantry::json SYSTEM INTERFACE "${QUANTRY_JSON_INCLUDE}")
