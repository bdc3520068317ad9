#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace quantry {

// The first bytes of a UTF-8 text, at most `max_bytes`, cut between characters:
// half a character in a proto string makes a message that nobody can parse.
inline std::string Utf8Prefix(std::string_view text, std::size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  constexpr std::size_t kMostContinuations = 3;
  std::size_t end = max_bytes;
  while (end > 0 && max_bytes - end < kMostContinuations &&
         (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) {
    --end;
  }
  return std::string(text.substr(0, end));
}

}  // namespace quantry
