#include "common/trace_context.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kParent[] = "b7ad6b7169203331";

TEST(TraceContextTest, ParsesAndFormats) {
  for (const bool sampled : {false, true}) {
    const std::string text =
        "00-" + std::string(kTrace) + "-" + kParent + (sampled ? "-01" : "-00");
    const auto context = ParseTraceparent(text);
    ASSERT_TRUE(context.has_value()) << text;
    EXPECT_EQ(context->trace_id, kTrace);
    EXPECT_EQ(context->parent_id, kParent);
    EXPECT_EQ(context->sampled, sampled);
    EXPECT_EQ(FormatTraceparent(*context), text);
    EXPECT_EQ(TraceIdOf(text), kTrace);
  }
}

TEST(TraceContextTest, FlagsAndVersionsToCome) {
  const std::string ids = "-" + std::string(kTrace) + "-" + kParent + "-";
  EXPECT_TRUE(ParseTraceparent("00" + ids + "ff")->sampled);
  EXPECT_FALSE(ParseTraceparent("00" + ids + "fe")->sampled);
  EXPECT_TRUE(ParseTraceparent("cc" + ids + "01").has_value());
  EXPECT_TRUE(ParseTraceparent("cc" + ids + "01-what-comes").has_value());
  // Handed on in the form of the version we know.
  EXPECT_EQ(FormatTraceparent(*ParseTraceparent("cc" + ids + "03-x")), "00" + ids + "01");
}

TEST(TraceContextTest, WhatIsNone) {
  const std::string good = "00-" + std::string(kTrace) + "-" + kParent + "-01";
  const std::pair<const char*, std::string> cases[] = {
      {"empty", ""},
      {"short", good.substr(1)},
      {"long", good + "-x"},
      {"longer", good + "0"},
      {"version ff", "ff" + good.substr(2)},
      {"version of letters", "zz" + good.substr(2)},
      {"a later version glued", "cc" + good.substr(2) + "0"},
      {"upper case", "00-0AF7651916CD43DD8448EB211C80319C-" + std::string(kParent) + "-01"},
      {"zero trace", "00-" + std::string(32, '0') + "-" + kParent + "-01"},
      {"zero parent", "00-" + std::string(kTrace) + "-" + std::string(16, '0') + "-01"},
      {"other dashes", "00_" + good.substr(3)},
      {"bad flags", good.substr(0, 53) + "0x"},
      {"a flood", "cc" + good.substr(2) + "-" + std::string(1000, 'x')},
  };
  for (const auto& [name, text] : cases) {
    EXPECT_FALSE(ParseTraceparent(text).has_value()) << name;
    EXPECT_EQ(TraceIdOf(text), "") << name;
  }
}

TEST(TraceContextTest, NewTracesAreValidAndDiffer) {
  const TraceContext first = NewTrace(true);
  const auto again = ParseTraceparent(FormatTraceparent(first));
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->trace_id, first.trace_id);
  EXPECT_TRUE(again->sampled);
  EXPECT_NE(NewTrace(false).trace_id, first.trace_id);
  EXPECT_NE(NewTrace(false).parent_id, first.parent_id);
}

}  // namespace
}  // namespace quantry
