#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace quantry {

// Whether a UTF-8 text shows what it says: no control characters, nothing that is
// invisible or turns the order of what follows (bidi). Logs, terminals and pages
// show it to people who act on it. False for what is no UTF-8.
inline bool IsPrintable(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    const std::size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if ((first >= 0x80 && first < 0xc2) || first > 0xf4 || text.size() - i < length) return false;
    std::uint32_t code = length == 1 ? first : first & (0xffU >> (length + 1));
    for (std::size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fU);
    }
    i += length;
    const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
    const bool order = code == 0x061c || (code >= 0x200b && code <= 0x200f) ||
                       (code >= 0x2028 && code <= 0x202e) || (code >= 0x2060 && code <= 0x206f);
    const bool tag = code == 0xfeff || (code >= 0xfff9 && code <= 0xfffb) || code >= 0xe0000;
    if (control || order || tag) return false;
  }
  return true;
}

}  // namespace quantry
