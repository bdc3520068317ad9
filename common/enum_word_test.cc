#include "common/enum_word.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

TEST(EnumWordTest, LeavesThePrefixOut) {
  EXPECT_EQ(EnumWord("OUTPUT_FORMAT_COMPRESSED_TENSORS", "OUTPUT_FORMAT_"), "compressed-tensors");
  EXPECT_EQ(EnumWord("OUTPUT_FORMAT_GPTQ_V1", "OUTPUT_FORMAT_"), "gptq-v1");
  EXPECT_EQ(EnumWord("INIT_AWQ", "OUTPUT_FORMAT_"), "init-awq");
  EXPECT_EQ(EnumWord("STAGE_STAGE_", "STAGE_"), "stage-");
  EXPECT_EQ(EnumWord("", "STAGE_"), "");
}

}  // namespace
}  // namespace quantry
