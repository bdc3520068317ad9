#pragma once

#include <sstream>
#include <string>
#include <string_view>

namespace quantry::engine {

// Text of all arguments one after the other, as operator<< prints them.
template <typename... Args>
std::string StrCat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// "a, b, c"; past `limit` entries ", and 12 more".
template <typename Range>
std::string Join(const Range& range, size_t limit = 8, std::string_view separator = ", ") {
  std::ostringstream out;
  size_t count = 0;
  for (const auto& item : range) {
    if (count < limit) out << (count == 0 ? std::string_view() : separator) << item;
    ++count;
  }
  if (count > limit) out << separator << "and " << count - limit << " more";
  return out.str();
}

// A name from somebody else's file as it may appear in a message: control
// characters and bytes above 0x7e become \xNN, long ones are cut.
std::string Printable(std::string_view text, size_t limit = 200);

// A number as printf prints it; `format` has the one conversion. Past 63 bytes
// it is cut.
std::string Printed(const char* format, double value);

}  // namespace quantry::engine
