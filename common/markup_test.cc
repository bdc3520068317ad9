#include "common/markup.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

TEST(Markup, EscapesWhatCouldEndTextOrAnAttribute) {
  EXPECT_EQ(EscapeMarkup("<a href=\"x\" b='y'>&amp;"),
            "&lt;a href=&quot;x&quot; b=&#39;y&#39;&gt;&amp;amp;");
  EXPECT_EQ(EscapeMarkup("tab\tline\nbell\a\x7f"), "tab\tline\nbell\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(EscapeMarkup("µ – ok"), "µ – ok");
}

}  // namespace
}  // namespace quantry
