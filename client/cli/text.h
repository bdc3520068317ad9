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

// "a, b, c" of anything that streams.
template <typename List>
std::string CommaSeparated(const List& list) {
  std::string text;
  for (const auto& item : list) text += Cat(text.empty() ? "" : ", ", item);
  return text;
}

}  // namespace quantry::cli
