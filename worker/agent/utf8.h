#pragma once

#include <string>
#include <string_view>

namespace quantry::agent {

// `text` with every byte that is no part of valid UTF-8 replaced by '?': what
// engines print and files are called must fit into proto strings.
std::string ToValidUtf8(std::string_view text);

}  // namespace quantry::agent
