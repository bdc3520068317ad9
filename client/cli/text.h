#pragma once

#include <sstream>
#include <string>

namespace quantry::cli {

// Concatenates anything that streams. (Debian's absl::StrCat does not take
// std::string_view.)
template <typename... Args>
std::string Cat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return std::move(out).str();
}

}  // namespace quantry::cli
