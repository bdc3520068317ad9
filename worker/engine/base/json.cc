#include "worker/engine/base/json.h"

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

nlohmann::json ParseJson(std::string_view text, const std::string& what, const std::string& reason,
                         int max_depth) {
  const auto within_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth <= max_depth) return true;
    throw UserError(reason, StrCat(what, " nests deeper than ", max_depth, " levels"));
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), within_depth);
  } catch (const nlohmann::json::exception& error) {
    throw UserError(reason, StrCat(what, " is not valid JSON: ", Printable(error.what(), 300)));
  }
}

}  // namespace quantry::engine
