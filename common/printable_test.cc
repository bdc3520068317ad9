#include "common/printable.h"

#include <gtest/gtest.h>

#include <string>

namespace quantry {
namespace {

TEST(PrintableTest, ShowsWhatItSays) {
  const std::string zero("a\0b", 3);
  const struct {
    std::string text;
    bool printable;
  } cases[] = {
      {"", true},
      {"gpu-box 1 (NVIDIA H100/80GB)", true},
      {"b\u00fcro-\u65e5\U0001F600", true},
      {zero, false},
      {"a\nb", false},
      {"a\x1b[2J", false},
      {"a\x7f", false},
      {"a\u0085", false},   // a control character of two bytes
      {"a\u202eb", false},  // right to left from here
      {"a\u2066", false},
      {"a\u061c", false},
      {"a\u200b", false},  // no width
      {"a\ufeff", false},
      {"a\U000E0041", false},
      {"a\xff", false},
      {"a\xc3", false},
      {"a\xc3z", false},
      {"\x80", false},
  };
  for (const auto& c : cases) EXPECT_EQ(IsPrintable(c.text), c.printable) << c.text;
}

}  // namespace
}  // namespace quantry
