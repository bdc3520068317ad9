#include "worker/engine/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "worker/engine/base/random.h"
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

constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";
constexpr char kQwen[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";

std::string Split(const std::string& pattern) {
  return R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":")" + pattern +
         R"("},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,)"
         R"("trim_offsets":true,"use_regex":false}]})";
}

// Bytes as GPT-2 writes them, and some merges across them.
std::string ByteLevelTokenizer(const std::string& normalizer, const std::string& pre_tokenizer) {
  nlohmann::json vocab, merges = nlohmann::json::array();
  const auto add = [&](const std::string& token) { vocab.emplace(token, vocab.size()); };
  const auto utf8 = [](int code) {
    std::string text;
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    text += static_cast<char>(0xc0 | code >> 6);
    return text + static_cast<char>(0x80 | (code & 0x3f));
  };
  int shifted = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    add(utf8(printable ? byte : shifted++));
  }
  const std::string space = utf8(288), line = utf8(266);
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{{line, line},
                                                                             {space, space},
                                                                             {space, "a"},
                                                                             {"t", "i"},
                                                                             {"ti", "m"},
                                                                             {"'", "s"},
                                                                             {"!", line},
                                                                             {"1", "2"},
                                                                             {"12", "3"},
                                                                             {"x", line},
                                                                             {line, "x"},
                                                                             {"u", "p"}}) {
    merges.push_back({a, b});
    add(a + b);
  }
  const nlohmann::json model = {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}};
  return R"({"version":"1.0","added_tokens":[{"id":)" + std::to_string(vocab.size()) +
         R"(,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,)"
         R"("normalized":false,"special":true}],"normalizer":)" +
         normalizer + R"(,"pre_tokenizer":)" + pre_tokenizer +
         R"(,"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":)" +
         model.dump() + "}";
}

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

// A token for padding may have been added beyond the weights' rows: no text has it.
TEST(TokenizerTest, IdsThatTheModelLacksAreRefusedInATextAlone) {
  const auto tokenizer = Make();
  EXPECT_NO_THROW(tokenizer->CheckIds(tokenizer->Encode("<s>a"), 4));
  EXPECT_NO_THROW(tokenizer->CheckIds(tokenizer->Encode("abba"), 3));
  EXPECT_NO_THROW(tokenizer->CheckIds({}, 3));
  const EngineError error = ErrorOf([&] { tokenizer->CheckIds(tokenizer->Encode("a<s>a"), 3); });
  EXPECT_EQ(error.reason, "INVALID_TOKENIZER");
  EXPECT_EQ(error.metadata.at("vocab_size"), "3");
  EXPECT_EQ(error.metadata.at("id"), "3");
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

// Text with everything that could trip a cut: runs of spaces and line breaks,
// other alphabets, bytes without a token, contractions, added tokens.
std::string TrickyText(const std::vector<std::string>& words) {
  Random random(11);
  std::string text;
  for (int i = 0; i < 1500; ++i) text += words[random.Below(words.size())];
  return text;
}

const std::vector<std::string> kWords = {
    "Once",    "upon",   " a",     " time", "\n",     "\n",     "\n\n",       " ",
    "  ",      "   ",    "\t",     "\r\n",  "'s",     "'ll",    "don't",      "123",
    "4567",    "!",      "...",    "?!",    "\u00e9", "\u20ac", "\U0001f600", "\u4e2d\u6587",
    "e\u0301", "\u00a0", "\u2581", "x",     "Y",      "_",      "-",          "\n\u0301"};

TEST(TokenizerTest, PiecesGiveTheIdsOfTheWhole) {
  std::vector<std::shared_ptr<const Tokenizer>> tokenizers = {
      Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json"),
      Tokenizer::FromJson(ByteLevelTokenizer("null", R"({"type":"ByteLevel",
          "add_prefix_space":false,"trim_offsets":true,"use_regex":true})"),
                          "gpt2"),
      Tokenizer::FromJson(ByteLevelTokenizer(R"({"type":"NFC"})", Split(kQwen)), "qwen"),
      Tokenizer::FromJson(ByteLevelTokenizer("null", Split(kLlama3)), "llama3")};
  std::vector<std::string> with_special = kWords;
  with_special.push_back("<s>");
  for (const auto& tokenizer : tokenizers) {
    for (const auto& words : {kWords, with_special}) {
      const std::string text = TrickyText(words);
      const std::vector<int32_t> whole = tokenizer->Encode(text, 0);
      EXPECT_GT(whole.size(), 1000u);
      for (const size_t piece : {1, 2, 3, 7, 20, 100, 1000}) {
        EXPECT_EQ(tokenizer->Encode(text, piece), whole) << piece;
      }
    }
  }
}

TEST(TokenizerTest, TheExampleModel) {
  const auto tokenizer = Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  EXPECT_EQ(tokenizer->Encode("Once upon a time").front(), 403);
}

TEST(TokenizerTest, DecodesWhatItEncoded) {
  const auto tokenizer = Tokenizer::Load(QUANTRY_SOURCE_DIR "/examples/stories260k/tokenizer.json");
  const auto gpt2 = Tokenizer::FromJson(ByteLevelTokenizer("null", R"({"type":"ByteLevel",
          "add_prefix_space":false,"trim_offsets":true,"use_regex":true})"),
                                        "gpt2");
  for (const std::string text : {"Once upon a time, a dog ran.", "x", "two\n\nlines", "\u20ac 5"}) {
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
    EXPECT_EQ(gpt2->Decode(gpt2->Encode(text)), text);
  }
  EXPECT_EQ(tokenizer->Decode({}), "");
  // A character cut in the middle of its bytes.
  std::vector<int32_t> euro = gpt2->Encode("\u20ac");
  ASSERT_EQ(euro.size(), 3u);
  euro.pop_back();
  EXPECT_EQ(gpt2->Decode(euro), "\ufffd");
}

}  // namespace
}  // namespace quantry::engine
