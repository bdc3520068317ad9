#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace quantry::engine {

// JSON from somebody else's file. `what` names it in messages, `reason` is that
// of the UserError thrown for text which is not JSON or nests deeper than
// max_depth (recursive code downstream would overflow its stack).
nlohmann::json ParseJson(std::string_view text, const std::string& what, const std::string& reason,
                         int max_depth = 64);

}  // namespace quantry::engine
