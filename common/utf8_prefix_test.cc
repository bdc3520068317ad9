#include "common/utf8_prefix.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

TEST(Utf8PrefixTest, CutsBetweenCharacters) {
  const struct {
    const char* text;
    std::size_t max_bytes;
    const char* prefix;
  } cases[] = {
      {"", 0, ""},    {"abc", 3, "abc"}, {"abc", 2, "ab"}, {"abc", 0, ""},  {"aя", 3, "aя"},
      {"aя", 2, "a"}, {"яя", 3, "я"},    {"я", 1, ""},     {"€€", 5, "€"},  {"€€", 4, "€"},
      {"€€", 3, "€"}, {"a😀b", 5, "a😀"},  {"a😀b", 4, "a"},  {"a😀b", 2, "a"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Utf8Prefix(c.text, c.max_bytes), c.prefix) << c.text << " " << c.max_bytes;
  }
}

TEST(Utf8PrefixTest, WhatIsNoUtf8IsNotEatenUp) {
  EXPECT_EQ(Utf8Prefix(std::string(100, '\x80'), 50).size(), 47u);
}

}  // namespace
}  // namespace quantry
