#pragma once

#include <map>
#include <string>

namespace quantry::engine {

// What made an artifact: "engine", "libtorch", "schema".
std::map<std::string, std::string> Versions();

}  // namespace quantry::engine
