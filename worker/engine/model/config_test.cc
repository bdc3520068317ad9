#include "worker/engine/model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "worker/engine/model/architecture.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using nlohmann::json;
using test::ErrorOf;
using test::Mentions;

json Llama() {
  return {{"model_type", "llama"}, {"hidden_size", 64},       {"intermediate_size", 172},
          {"vocab_size", 512},     {"num_hidden_layers", 5},  {"num_attention_heads", 8},
          {"rms_norm_eps", 1e-5},  {"num_key_value_heads", 4}};
}

ModelConfig Parse(const json& config) {
  const Architecture* row = nullptr;
  return ParseModelConfig(config.dump(), &row);
}

ModelConfig Parse(json config, const json& changes) {
  config.update(changes);
  return Parse(config);
}

TEST(ConfigTest, DefaultsAreThoseOfTheArchitecture) {
  const ModelConfig llama = Parse(Llama());
  EXPECT_EQ(llama.head_dim, 8);
  EXPECT_EQ(llama.kv_size(), 32);
  EXPECT_FALSE(llama.attention_bias || llama.mlp_bias || llama.tie_word_embeddings);
  EXPECT_EQ(llama.rope_theta, 10000.0);
  EXPECT_EQ(llama.activation, Activation::kSilu);
  EXPECT_EQ(llama.dtype, at::kFloat);
  EXPECT_EQ(Parse(Llama(), {{"model_type", "qwen3"}}).head_dim, 128);
  EXPECT_TRUE(Parse(Llama(), {{"model_type", "qwen2"}}).attention_bias);
  EXPECT_EQ(Parse(Llama(), {{"num_key_value_heads", nullptr}}).num_kv_heads, 8);
  const ModelConfig opt = Parse({{"model_type", "opt"},
                                 {"hidden_size", 64},
                                 {"ffn_dim", 256},
                                 {"vocab_size", 512},
                                 {"num_hidden_layers", 2},
                                 {"num_attention_heads", 4}});
  EXPECT_EQ(opt.intermediate_size, 256);
  EXPECT_TRUE(opt.attention_bias && opt.mlp_bias && opt.tie_word_embeddings);
  EXPECT_EQ(opt.activation, Activation::kRelu);
  EXPECT_EQ(opt.norm_eps, 1e-5);
}

TEST(ConfigTest, RopeInBothSpellings) {
  const json llama3 = {{"rope_type", "llama3"},  {"factor", 8.0},
                       {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0},
                       {"rope_theta", 500000.0}, {"original_max_position_embeddings", 8192}};
  const ModelConfig fresh = Parse(Llama(), {{"rope_parameters", llama3}});
  EXPECT_EQ(fresh.rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(fresh.rope_theta, 500000.0);
  const ModelConfig old =
      Parse(Llama(), {{"rope_theta", 5e5}, {"rope_scaling", {{"type", "linear"}, {"factor", 4}}}});
  EXPECT_EQ(old.rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(old.rope_scaling.factor, 4.0);
  EXPECT_EQ(old.rope_theta, 5e5);
}

TEST(ConfigTest, DtypeInBothSpellings) {
  EXPECT_EQ(Parse(Llama(), {{"torch_dtype", "bfloat16"}}).dtype, at::kBFloat16);
  EXPECT_EQ(Parse(Llama(), {{"dtype", "float16"}}).dtype, at::kHalf);
}

TEST(ConfigTest, SlidingWindowCountsOnlyWhereItIsOn) {
  const json window = {{"sliding_window", 16}};
  EXPECT_EQ(Parse(Llama(), {{"model_type", "mistral"}, {"sliding_window", nullptr}}).sliding_window,
            0);
  EXPECT_EQ(Parse(Llama(), {{"model_type", "mistral"}}).sliding_window, 4096);
  EXPECT_EQ(Parse(Llama(), {{"model_type", "mistral"}, {"sliding_window", 16}}).sliding_window, 16);
  EXPECT_EQ(Parse(Llama(), {{"model_type", "qwen2"}, {"sliding_window", 16}}).sliding_window, 0);
  const ModelConfig on = Parse(
      Llama(), {{"model_type", "qwen2"}, {"sliding_window", 16}, {"use_sliding_window", true}});
  EXPECT_EQ(on.sliding_window, 16);
  const Architecture& row = *FindArchitecture("qwen2");
  EXPECT_NO_THROW(CheckSequenceLength(row, on, 16));
  EXPECT_TRUE(Mentions(ErrorOf([&] { CheckSequenceLength(row, on, 17); }), "at most 16"));
}

TEST(ConfigTest, LearnedPositionsBoundTheSequence) {
  ModelConfig config;
  config.max_positions = 8;
  EXPECT_NO_THROW(CheckSequenceLength(*FindArchitecture("opt"), config, 8));
  EXPECT_TRUE(Mentions(ErrorOf([&] { CheckSequenceLength(*FindArchitecture("opt"), config, 9); }),
                       "9 tokens"));
  EXPECT_NO_THROW(CheckSequenceLength(*FindArchitecture("llama"), config, 9));
}

struct BadConfig {
  const char* name;
  json changes;
  const char* reason;
  const char* message;
};

class BadConfigTest : public ::testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigTest, IsRefused) {
  const EngineError error = ErrorOf([] { Parse(Llama(), GetParam().changes); });
  EXPECT_EQ(error.reason, GetParam().reason) << error.what();
  EXPECT_TRUE(Mentions(error, GetParam().message)) << error.what();
  EXPECT_TRUE(Mentions(error, "config.json")) << error.what();
}

constexpr char kInvalid[] = "INVALID_CHECKPOINT";
constexpr char kUnsupported[] = "UNSUPPORTED_ARCHITECTURE";

INSTANTIATE_TEST_SUITE_P(
    All, BadConfigTest,
    ::testing::Values(
        BadConfig{"UnknownType", {{"model_type", "gpt_bigcode"}}, kUnsupported, "gpt_bigcode"},
        BadConfig{"NoType", {{"model_type", nullptr}}, kUnsupported, "''"},
        BadConfig{"TypeNotText", {{"model_type", 3}}, kInvalid, "got 3"},
        BadConfig{"HiddenAbsent", {{"hidden_size", nullptr}}, kInvalid, "got nothing"},
        BadConfig{"HiddenZero", {{"hidden_size", 0}}, kInvalid, "got 0"},
        BadConfig{"HiddenNegative", {{"hidden_size", -64}}, kInvalid, "got -64"},
        BadConfig{"HiddenHuge", {{"hidden_size", 9223372036854775807}}, kInvalid, "1048576"},
        BadConfig{"HiddenBeyondInt64",
                  {{"hidden_size", 18446744073709551615ull}},
                  kInvalid,
                  "18446744073709551615"},
        BadConfig{"HiddenFraction", {{"hidden_size", 64.5}}, kInvalid, "64.5"},
        BadConfig{"HiddenText", {{"hidden_size", "64"}}, kInvalid, "\"64\""},
        BadConfig{"LayersHuge", {{"num_hidden_layers", 1000000}}, kInvalid, "4096"},
        BadConfig{"HeadsDoNotDivide",
                  {{"num_attention_heads", 7}, {"num_key_value_heads", 7}},
                  kInvalid,
                  "does not divide"},
        BadConfig{"KvHeadsDoNotDivide", {{"num_key_value_heads", 3}}, kInvalid, "3"},
        BadConfig{"VocabularyHuge", {{"vocab_size", int64_t{1} << 40}}, kInvalid, "vocab_size"},
        BadConfig{"OddHeadDim", {{"head_dim", 7}}, kUnsupported, "odd"},
        BadConfig{"EpsNegative", {{"rms_norm_eps", -1}}, kInvalid, "rms_norm_eps"},
        BadConfig{"ThetaZero", {{"rope_theta", 0}}, kInvalid, "rope_theta"},
        BadConfig{"RopeDynamic",
                  {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2}}}},
                  kUnsupported,
                  "dynamic"},
        BadConfig{"RopeYarn",
                  {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}}}},
                  kUnsupported,
                  "yarn"},
        BadConfig{
            "RopeWithoutFactor", {{"rope_scaling", {{"type", "linear"}}}}, kInvalid, "factor"},
        BadConfig{"RopeNotAnObject", {{"rope_scaling", 3}}, kInvalid, "an object"},
        BadConfig{"Llama3Backwards",
                  {{"rope_scaling",
                    {{"rope_type", "llama3"},
                     {"factor", 8},
                     {"low_freq_factor", 4},
                     {"high_freq_factor", 1}}}},
                  kInvalid,
                  "high_freq_factor"},
        BadConfig{"PartialRotary", {{"partial_rotary_factor", 0.5}}, kUnsupported, "partial"},
        BadConfig{"UnknownActivation", {{"hidden_act", "relu2"}}, kUnsupported, "relu2"},
        BadConfig{"FlagNotBoolean", {{"attention_bias", "yes"}}, kInvalid, "true or false"},
        BadConfig{"LayerTypes",
                  {{"layer_types", {"full_attention", "linear_attention"}}},
                  kUnsupported,
                  "linear_attention"},
        BadConfig{"AlreadyQuantized",
                  {{"quantization_config", {{"bits", 4}}}},
                  kInvalid,
                  "quantry-engine unpack"}),
    [](const auto& test_case) { return std::string(test_case.param.name); });

TEST(ConfigTest, RefusesTextThatIsNoConfig) {
  const Architecture* row = nullptr;
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string(1 << 20, '[')}) {
    EXPECT_EQ(ErrorOf([&] { ParseModelConfig(text, &row); }).reason, kInvalid);
  }
}

TEST(ConfigTest, OptVariantsWeLackAreRefused) {
  const json opt = {{"model_type", "opt"}, {"hidden_size", 64},      {"ffn_dim", 256},
                    {"vocab_size", 512},   {"num_hidden_layers", 2}, {"num_attention_heads", 4}};
  const auto message = [&](const json& changes) {
    return std::string(ErrorOf([&] { Parse(opt, changes); }).what());
  };
  EXPECT_NE(message({{"do_layer_norm_before", false}}).find("after the residual"),
            std::string::npos);
  EXPECT_NE(message({{"word_embed_proj_dim", 32}}).find("projections"), std::string::npos);
}

TEST(ArchitectureTest, SmoothingGroupsFollowGqaAndActivation) {
  ModelConfig config = Parse(Llama());
  const Architecture& llama = *FindArchitecture("llama");
  EXPECT_EQ(UsableSmoothingGroups(llama, config).size(), 3u);  // v_proj is narrower
  config.num_kv_heads = config.num_heads;
  const auto groups = UsableSmoothingGroups(llama, config);
  ASSERT_EQ(groups.size(), 4u);
  EXPECT_EQ(groups[1].previous, "self_attn.v_proj");
  EXPECT_EQ(groups[3].previous, "mlp.up_proj");
  config.activation = Activation::kRelu;
  EXPECT_EQ(UsableSmoothingGroups(*FindArchitecture("opt"), config).size(), 4u);
  config.activation = Activation::kGelu;
  EXPECT_EQ(UsableSmoothingGroups(*FindArchitecture("opt"), config).size(), 3u);
}

TEST(ArchitectureTest, RowsAreConsistent) {
  for (const Architecture* row : Architectures()) {
    EXPECT_EQ(FindArchitecture(row->name), row);
    for (const SmoothingGroup& group : row->smoothing_groups) {
      bool found = false;
      for (const NormSpec& norm : row->norms) {
        found = found || (group.previous_is_norm && norm.name == group.previous);
      }
      for (const LinearSpec& linear : row->linears) {
        found = found || (!group.previous_is_norm && linear.name == group.previous);
      }
      EXPECT_TRUE(found) << row->name << " " << group.previous;
      for (const int i : group.linears) ASSERT_LT(i, static_cast<int>(row->linears.size()));
    }
    EXPECT_EQ(row->gated_mlp, row->LinearIndex(LinearRole::kGate) >= 0);
    EXPECT_GE(row->NormIndex(NormRole::kAttentionInput), 0);
    EXPECT_GE(row->NormIndex(NormRole::kMlpInput), 0);
  }
}

}  // namespace
}  // namespace quantry::engine
