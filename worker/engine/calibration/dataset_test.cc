#include "worker/engine/calibration/dataset.h"

#include <gtest/gtest.h>

#include <fstream>

#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::Mentions;

class DatasetTest : public ::testing::Test {
 protected:
  TextSource Source(const std::string& content, TextFormat format = TextFormat::kText) {
    TextSource source{.path = dir_.File("text"), .format = format};
    std::ofstream(source.path, std::ios::binary) << content;
    return source;
  }
  std::vector<int32_t> Ids(const std::string& content) {
    return ReadTokens(Source(content, TextFormat::kTokenIds), nullptr, 100);
  }
  EngineError IdsError(const std::string& content) {
    return ErrorOf([&] { Ids(content); });
  }
  static std::shared_ptr<const Tokenizer> Stories() {
    return Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  }

  test::TempDir dir_;
};

TEST_F(DatasetTest, TokenIdsInEveryAcceptedShape) {
  const std::vector<int32_t> wanted = {1, 2, 99, 0};
  EXPECT_EQ(Ids("[1,2,99,0]"), wanted);
  EXPECT_EQ(Ids(" [[1,2],\n [99,0]] \n"), wanted);
  EXPECT_EQ(Ids("[1,2]\n[99]\n\n[0]"), wanted);
  EXPECT_EQ(Ids("[1,2]\r\n[99,0]\r\n"), wanted);
}

TEST_F(DatasetTest, BadTokenIds) {
  for (const char* content : {"[1,100]", "[1,-1]", "[1.5]", "[\"a\"]", "{\"a\":1}", "17", "[1,2",
                              "[1]\nx", "[1]\n2", "[[[1]]]", "[null]", "[4294967297]"}) {
    const EngineError error = IdsError(content);
    EXPECT_EQ(error.reason, "INVALID_CALIBRATION") << content;
    EXPECT_TRUE(Mentions(error, dir_.File("text"))) << error.what();
  }
  EXPECT_TRUE(Mentions(IdsError("[1,100]"), "0 to 99"));
}

TEST_F(DatasetTest, TextNeedsATokenizerThatFits) {
  const TextSource source = Source("Once upon a time");
  EXPECT_FALSE(ReadTokens(source, Stories().get(), 512).empty());
  EXPECT_EQ(ErrorOf([&] { ReadTokens(source, nullptr, 512); }).reason, "INVALID_TOKENIZER");
  const EngineError small = ErrorOf([&] { ReadTokens(source, Stories().get(), 256); });
  EXPECT_EQ(small.reason, "INVALID_TOKENIZER");
  EXPECT_TRUE(Mentions(small, "id 407") && Mentions(small, "255")) << small.what();
}

TEST_F(DatasetTest, EmptyText) {
  for (const char* content : {"", "\n \t\r\n"}) {
    for (const TextFormat format : {TextFormat::kText, TextFormat::kTokenIds}) {
      const EngineError error =
          ErrorOf([&] { ReadTokens(Source(content, format), Stories().get(), 512); });
      EXPECT_EQ(error.reason, "INVALID_CALIBRATION");
      EXPECT_TRUE(Mentions(error, "empty")) << error.what();
    }
  }
}

TEST_F(DatasetTest, AbsentFileUsesTheCallersReason) {
  const TextSource source{
      .path = dir_.File("absent"), .what = "evaluation", .reason = "INVALID_EVALUATION"};
  EXPECT_EQ(ErrorOf([&] { ReadTokens(source, nullptr, 9); }).reason, "INVALID_EVALUATION");
}

TEST_F(DatasetTest, TextThatIsNotUtf8NamesTheByte) {
  const EngineError error =
      ErrorOf([&] { ReadTokens(Source("Once upon a time \xff\xfe"), Stories().get(), 512); });
  EXPECT_EQ(error.reason, "INVALID_CALIBRATION");
  EXPECT_TRUE(Mentions(error, "byte 17")) << error.what();
}

TEST_F(DatasetTest, ContiguousWindowsDropTheTail) {
  const TextSource source;
  const std::vector<int32_t> tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const at::Tensor all = CutWindows(tokens, {.windows = 0, .length = 3}, source);
  EXPECT_TRUE(all.equal(at::arange(9, at::kLong).view({3, 3})));
  const at::Tensor two = CutWindows(tokens, {.windows = 2, .length = 5}, source);
  EXPECT_TRUE(two.equal(at::arange(10, at::kLong).view({2, 5})));
}

TEST_F(DatasetTest, RandomWindowsFollowTheSeed) {
  std::vector<int32_t> tokens(1000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i);
  const auto cut = [&](uint64_t seed) {
    return CutWindows(
        tokens, {.windows = 200, .length = 10, .sampling = Sampling::kRandom, .seed = seed}, {});
  };
  const at::Tensor first = cut(1);
  EXPECT_TRUE(first.equal(cut(1)));
  EXPECT_FALSE(first.equal(cut(2)));
  EXPECT_TRUE((first.narrow(1, 1, 9) - first.narrow(1, 0, 9)).eq(1).all().item<bool>());
  EXPECT_LT(first.select(1, 0).min().item<int64_t>(), 50);
  EXPECT_GT(first.select(1, 9).max().item<int64_t>(), 950);
  const at::Tensor only =
      CutWindows({7, 8}, {.windows = 3, .length = 2, .sampling = Sampling::kRandom, .seed = 5}, {});
  EXPECT_TRUE(only.equal(at::tensor({7, 8, 7, 8, 7, 8}, at::kLong).view({3, 2})));
}

TEST_F(DatasetTest, TooLittleTextSaysHowMuchThereIs) {
  const std::vector<int32_t> tokens(100);
  const EngineError error =
      ErrorOf([&] { CutWindows(tokens, {.windows = 4, .length = 30}, {.path = "c.txt"}); });
  EXPECT_EQ(error.reason, "INVALID_CALIBRATION");
  EXPECT_TRUE(Mentions(error, "100 tokens = 3 windows of 30, 4 are asked for")) << error.what();
  EXPECT_EQ(error.metadata.at("windows"), "3");
  const WindowSpec all = {.windows = 0, .length = 101};
  EXPECT_EQ(ErrorOf([&] { CutWindows(tokens, all, {}); }).reason, "INVALID_CALIBRATION");
  const WindowSpec random = {.windows = 1, .length = 101, .sampling = Sampling::kRandom};
  EXPECT_EQ(ErrorOf([&] { CutWindows(tokens, random, {}); }).reason, "INVALID_CALIBRATION");
}

TEST_F(DatasetTest, SpecsThatMakeNoSense) {
  const std::vector<int32_t> tokens(100);
  for (const WindowSpec& spec :
       {WindowSpec{.windows = 1, .length = 1}, WindowSpec{.windows = 1, .length = 0},
        WindowSpec{.windows = 1, .length = -5}, WindowSpec{.windows = -1, .length = 5},
        WindowSpec{.windows = 0, .length = 5, .sampling = Sampling::kRandom}}) {
    EXPECT_EQ(ErrorOf([&] { CutWindows(tokens, spec, {}); }).reason, "INVALID_SPEC");
  }
}

TEST(Utf8Test, FollowsTheStandard) {
  const struct {
    std::string text;
    int64_t bad;
  } cases[] = {
      {"plain", -1},
      {"", -1},
      {"\xc3\xa9", -1},
      {"\xe2\x82\xac", -1},
      {"\xf0\x9f\x98\x80", -1},
      {std::string("a\0b", 3), -1},
      {"a\x80", 1},
      {"\xc0\xaf", 0},  // overlong
      {"\xe0\x80\x80", 0},
      {"\xed\xa0\x80", 0},  // overlong, surrogate
      {"\xf4\x90\x80\x80", 0},
      {"\xf5", 0},  // above U+10FFFF
      {"ab\xe2\x82", 2},
      {"\xe2\x28\xa1", 0},  // cut short, bad second byte
      {"\xef\xbf\xbf", -1},
      {"\xf4\x8f\xbf\xbf", -1},
  };
  for (const auto& c : cases) EXPECT_EQ(FindInvalidUtf8(c.text), c.bad) << c.text;
}

}  // namespace
}  // namespace quantry::engine
