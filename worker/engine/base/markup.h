#pragma once

#include <string>
#include <string_view>

namespace quantry::engine {

// Text as it may stand between tags and in quoted attributes of HTML and XML:
// & < > " ' become entities, control characters U+FFFD.
std::string EscapeMarkup(std::string_view text);

}  // namespace quantry::engine
