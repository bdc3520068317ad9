#include "worker/engine/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using test::ErrorOf;
using test::Mentions;

// Words "a" = 0, "b" = 1, "ab" = 2; "<s>" = 3 is special and would be added.
constexpr char kTokenizer[] = R"({
  "version": "1.0", "truncation": {"direction": "Right", "max_length": 2,
    "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
    "pad_id": 1, "pad_type_id": 0, "pad_token": "b"},
  "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false,
    "rstrip": false, "normalized": false, "special": true}],
  "normalizer": null, "pre_tokenizer": null,
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
  "decoder": null,
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})";

std::shared_ptr<const Tokenizer> Make() { return Tokenizer::FromJson(kTokenizer, "t.json"); }

TEST(TokenizerTest, EncodesWithoutSpecialTokensCutsOrPadding) {
  const auto tokenizer = Make();
  EXPECT_EQ(tokenizer->Encode("abab"), (std::vector<int32_t>{2, 2}));
  EXPECT_EQ(tokenizer->Encode("abba"), (std::vector<int32_t>{2, 1, 0}));
  EXPECT_EQ(tokenizer->Encode("a"), (std::vector<int32_t>{0}));
  EXPECT_TRUE(tokenizer->Encode("").empty());
}

TEST(TokenizerTest, AddedTokensCountInTheVocabulary) {
  EXPECT_EQ(Make()->vocab_size(), 4);
  EXPECT_EQ(Make()->Encode("<s>a"), (std::vector<int32_t>{3, 0}));
}

TEST(TokenizerTest, AModelWithFewerIdsIsRefused) {
  const auto tokenizer = Make();
  EXPECT_NO_THROW(tokenizer->CheckFits(4));
  EXPECT_NO_THROW(tokenizer->CheckFits(4096));
  const EngineError error = ErrorOf([&] { tokenizer->CheckFits(3); });
  EXPECT_EQ(error.reason, "INVALID_TOKENIZER");
  EXPECT_EQ(error.metadata.at("vocab_size"), "3");
  EXPECT_TRUE(Mentions(error, "t.json")) << error.what();
}

TEST(TokenizerTest, RefusesWhatIsNoTokenizer) {
  for (const char* json : {"", "{", "[]", "{}", "not json", R"({"model": {"type": "Nonsense"}})"}) {
    const EngineError error = ErrorOf([&] { Tokenizer::FromJson(json, "t.json"); });
    EXPECT_EQ(error.reason, "INVALID_TOKENIZER") << json;
    EXPECT_TRUE(Mentions(error, "t.json")) << error.what();
  }
  EXPECT_EQ(ErrorOf([] { Tokenizer::Load("/nonexistent/tokenizer.json"); }).reason,
            "INVALID_TOKENIZER");
}

TEST(TokenizerTest, BytesThatAreNotUtf8AreAnErrorNotACrash) {
  EXPECT_EQ(ErrorOf([] { Make()->Encode("a\xff"); }).reason, "INVALID_TOKENIZER");
}

TEST(TokenizerTest, ThreadsShareOne) {
  const auto tokenizer = Make();
  std::vector<std::vector<int32_t>> found(4);
  {
    std::vector<std::jthread> threads;
    for (auto& ids : found) {
      threads.emplace_back([&] { ids = tokenizer->Encode(std::string(10'000, 'a')); });
    }
  }
  for (const auto& ids : found) EXPECT_EQ(ids.size(), 10'000u);
}

TEST(TokenizerTest, TheExampleModel) {
  const auto tokenizer = Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  EXPECT_EQ(tokenizer->Encode("Once upon a time").front(), 403);
}

}  // namespace
}  // namespace quantry::engine
