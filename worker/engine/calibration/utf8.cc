#include "worker/engine/calibration/dataset.h"

namespace quantry::engine {
namespace {

// Length of the sequence a lead byte starts and the range of its second byte
// (Unicode, table 3-7); length 0 for bytes that start none.
struct Lead {
  int length;
  unsigned char low;
  unsigned char high;
};

Lead LeadOf(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xc2 && byte <= 0xdf) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte >= 0xf1 && byte <= 0xf3) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

}  // namespace

int64_t FindInvalidUtf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const Lead lead = LeadOf(static_cast<unsigned char>(text[i]));
    if (lead.length == 0 || i + lead.length > text.size()) return static_cast<int64_t>(i);
    for (int k = 1; k < lead.length; ++k) {
      const auto byte = static_cast<unsigned char>(text[i + k]);
      const unsigned char low = k == 1 ? lead.low : 0x80, high = k == 1 ? lead.high : 0xbf;
      if (byte < low || byte > high) return static_cast<int64_t>(i);
    }
    i += lead.length;
  }
  return -1;
}

}  // namespace quantry::engine
