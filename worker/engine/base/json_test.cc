#include "worker/engine/base/json.h"

#include <gtest/gtest.h>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

TEST(JsonTest, ParsesUpToTheDepth) {
  EXPECT_EQ(ParseJson("[[1]]", "it", "BAD", 3)[0][0], 1);
  for (const char* text : {"[[[[1]]]]", "{", "", "\"\xff\"", "[1e999]"}) {
    try {
      ParseJson(text, "the file", "BAD", 3);
      ADD_FAILURE() << text << " was accepted";
    } catch (const EngineError& error) {
      EXPECT_EQ(error.reason, "BAD");
      EXPECT_NE(std::string(error.what()).find("the file"), std::string::npos);
    }
  }
}

TEST(JsonTest, SurvivesAStackOfBrackets) {
  EXPECT_THROW(ParseJson(std::string(1'000'000, '['), "it", "BAD"), EngineError);
}

}  // namespace
}  // namespace quantry::engine
