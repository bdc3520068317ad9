#include "client/cli/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "client/cli/options.h"
#include "client/cli/spec_check.h"
#include "client/cli/testing/run.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

using testing::HasSubstr;

TEST(BuildMethod, FlagsAndFileTogether) {
  struct Case {
    const char* name;
    SpecFlags flags;
    const char* wanted;  // text format of the method, "" = an error
    const char* error;
  };
  std::vector<Case> cases;
  const auto add = [&cases](const char* name, const char* wanted, const char* error = "") {
    cases.push_back({name, {}, wanted, error});
    return &cases.back().flags;
  };
  add("method only", "awq { grid { bits: 4 } }")->method = "awq";
  SpecFlags* f = add("all flags", "rtn { grid { bits: 3 group_size: 64 symmetric: true } }");
  f->method = "rtn", f->bits = 3, f->group_size = "64", f->symmetric = true;
  f = add("channel", "rtn { grid { bits: 4 group_size: -1 } }");
  f->method = "rtn", f->group_size = "channel";
  f = add("file only", "awq { grid { bits: 2 group_size: 32 } disable_clip_search: true }");
  f->method_config =
      R"({"awq": {"grid": {"bits": 2, "groupSize": 32}, "disable_clip_search": true}})";
  f = add("flag over file", "awq { grid { bits: 8 group_size: 32 } }");
  f->method_config = R"({"awq": {"grid": {"bits": 2, "group_size": 32}}})", f->bits = 8;
  f = add("file and its own method", "awq { grid { bits: 2 } scale_grid_points: 40 }");
  f->method = "awq";
  f->method_config = R"({"awq": {"grid": {"bits": 2}, "scaleGridPoints": 40}})";
  f = add("a recipe keeps the grid open", "tesseraq { grid { } recipe: \"tesseraq-w2g64\" }");
  f->method = "tesseraq", f->method_fields = {{"recipe", "tesseraq-w2g64"}};
  f = add("fields of every type",
          "tesseraq { grid { bits: 2 } init: INIT_NONE steps_per_stage: 25 learning_rate: 0.01 "
          "budget: BUDGET_FAST }");
  f->method = "tesseraq", f->bits = 2;
  f->method_fields = {
      {"init", "none"}, {"steps_per_stage", "25"}, {"learning_rate", "1e-2"}, {"budget", "fast"}};
  f = add("reach and held-out windows",
          "tesseraq { grid { bits: 2 } rounding_reach: 2 held_out_samples: 16 }");
  f->method = "tesseraq", f->bits = 2;
  f->method_fields = {{"rounding_reach", "2"}, {"held_out_samples", "16"}};
  f = add("a reach of words", "", "--rounding-reach: wanted a whole number above 0");
  f->method = "tesseraq", f->method_fields = {{"rounding_reach", "far"}};
  f = add("a field of another method", "", "--stages does not apply to method \"awq\"");
  f->method = "awq", f->method_fields = {{"stages", "10"}};
  f = add("an unknown word", "", "--init: wanted one of none, awq");
  f->method = "tesseraq", f->method_fields = {{"init", "luck"}};
  f = add("no number", "", "--learning-rate: wanted a number above 0");
  f->method = "tesseraq", f->method_fields = {{"learning_rate", "-1"}};
  f = add("activations", "awq { grid { bits: 4 } activations { bits: 4 } }");
  f->method = "awq", f->activation_bits = 4;
  f = add("activations over file", "gptq { grid { bits: 6 } activations { bits: 16 } }");
  f->method_config = R"({"gptq": {"grid": {"bits": 6}, "activations": {"bits": 6}}})";
  f->activation_bits = 16;
  f = add("twelve activation bits", "", "--activation-bits: wanted 2 to 8");
  f->method = "rtn", f->activation_bits = 12;
  f = add("ptq161", "ptq161 { recipe: \"ptq161-plus\" salient_ratio: 0.25 epochs: 3 }");
  f->method = "ptq161";
  f->method_fields = {{"recipe", "ptq161-plus"}, {"salient_ratio", "0.25"}, {"epochs", "3"}};
  f = add("bits without a grid", "",
          "do not apply to method \"ptq161\", which has no grid to choose: leave them out");
  f->method = "ptq161", f->bits = 2;
  add("nothing", "", "quantry methods");
  add("unknown method", "", "rtn, awq")->method = "magic";
  add("the oneof is no method", "", "--method")->method = "kind";
  f = add("two methods", "", "--method-config holds \"awq\"");
  f->method = "rtn", f->method_config = R"({"awq": {}})";
  add("broken JSON", "", "--method-config")->method_config = "{";
  add("unknown key", "", "--method-config")->method_config = R"({"awq": {"magic": 1}})";
  f = add("group size of words", "", "--group-size");
  f->method = "rtn", f->group_size = "many";
  f = add("group size -2", "", "--group-size");
  f->method = "rtn", f->group_size = "-2";
  for (const Case& c : cases) {
    const auto method = BuildMethod(c.flags);
    if (*c.error != '\0') {
      EXPECT_EQ(method.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
      EXPECT_THAT(std::string(method.status().message()), HasSubstr(c.error)) << c.name;
      continue;
    }
    ASSERT_TRUE(method.ok()) << c.name << ": " << method.status();
    EXPECT_EQ(method->ShortDebugString(), c.wanted) << c.name;
  }
}

TEST(BuildSpec, EveryFlagArrives) {
  SpecFlags flags;
  flags.method = "awq";
  flags.calibrate = flags.evaluate = true;
  flags.calibration_format = "tokens";
  flags.calibration_sampling = "random";
  flags.calibration_samples = 16;
  flags.calibration_length = 256;
  flags.evaluation_length = 128;
  flags.evaluation_windows = 9;
  flags.formats = {"dense", "gptq-v1", "dense"};
  flags.zero_point_at_least_one = true;
  flags.max_perplexity_ratio = 1.5;
  flags.device = "cuda:1";
  flags.threads = 2;
  flags.gpus = 1;
  flags.gpu_memory_gib = 0.5;
  flags.max_run_s = 90.5;
  flags.max_pending_s = 3600;
  flags.max_no_progress_s = 7200;
  flags.seed = 7;
  const auto spec = BuildSpec(flags);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->ShortDebugString(),
            "calibration { format: TEXT_FORMAT_TOKEN_IDS samples: 16 sequence_length: 256 "
            "sampling: SAMPLING_RANDOM } method { awq { grid { bits: 4 "
            "zero_point_at_least_one: true } } } "
            "outputs { format: OUTPUT_FORMAT_DENSE } outputs { format: OUTPUT_FORMAT_GPTQ_V1 } "
            "evaluation { format: TEXT_FORMAT_TEXT sequence_length: 128 windows: 9 } "
            "quality_gate { max_perplexity_ratio: 1.5 } resources { gpu_count: 1 "
            "min_gpu_memory_bytes: 536870912 device: \"cuda:1\" threads: 2 } "
            "stop_limits { max_run { seconds: 90 nanos: 500000000 } max_pending { seconds: 3600 } "
            "max_no_progress { seconds: 7200 } } seed: 7");
}

TEST(BuildSpec, PreprocessingAndItsCorpusGoTogether) {
  SpecFlags flags;
  flags.method = "ptq161";
  flags.preprocessing = "lora";
  EXPECT_THAT(std::string(BuildSpec(flags).status().message()),
              HasSubstr("--preprocessing-corpus FILE"));
  flags.preprocessing_corpus = true;
  flags.lora.set_steps(50);
  flags.lora.set_rank(8);
  const auto spec = BuildSpec(flags);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->preprocessing().ShortDebugString(),
            "format: TEXT_FORMAT_TEXT lora { rank: 8 steps: 50 }");
}

TEST(BuildSpec, AMethodOfAFileMayBePreprocessing) {
  SpecFlags flags;
  flags.method_config = R"({"restore": {}})";
  EXPECT_THAT(std::string(BuildSpec(flags).status().message()),
              HasSubstr("--method restore needs a text to train on"));
  flags.preprocessing_corpus = true;
  flags.preprocessing = "none";
  EXPECT_THAT(std::string(BuildSpec(flags).status().message()),
              HasSubstr("--method restore is preprocessing, got --preprocessing none"));
  flags.preprocessing.clear();
  flags.preprocessing_length = 64;
  const auto spec = BuildSpec(flags);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->preprocessing().sequence_length(), 64);
}

// All that the help names, without --preprocessing and with one that is none.
TEST(BuildSpec, FlagsOfPreprocessingThatIsNotWantedAreRefused) {
  const std::map<std::string, std::vector<std::string>> values = {
      {"--preprocessing-format", {"tokens"}},
      {"--preprocessing-dropout", {"0"}},
      {"--preprocessing-attention-output", {}}};
  std::set<std::string> flags;
  std::istringstream help(RunForTest({"submit", "--help"}).out);
  for (std::string word; help >> word;) {
    if (word.starts_with("--preprocessing-")) flags.insert(word);
  }
  EXPECT_EQ(flags.size(), 12U);
  for (const std::string& flag : flags) {
    std::vector<std::string> words = {"submit", "model", "--method", "rtn", flag};
    const auto found = values.find(flag);
    const auto with = found == values.end() ? std::vector<std::string>{"1"} : found->second;
    words.insert(words.end(), with.begin(), with.end());
    for (const bool none : {false, true}) {
      if (none) words.emplace_back("--preprocessing=none");
      const CliRun run = RunForTest(words);
      EXPECT_EQ(run.code, 2) << flag;
      EXPECT_THAT(run.err, HasSubstr(Cat(flag,
                                         " has no effect without --preprocessing lora: add "
                                         "--preprocessing lora, or leave ",
                                         flag, " out")));
    }
  }
}

TEST(BuildSpec, MemoryOfGpusNeedsAGpu) {
  SpecFlags flags;
  flags.method = "rtn";
  flags.gpu_memory_gib = 8;
  for (const char* device : {"", "auto", "cpu"}) {
    flags.device = device;
    EXPECT_THAT(std::string(BuildSpec(flags).status().message()),
                HasSubstr("--gpu-memory has no effect without --gpus: add --gpus N"));
  }
  flags.device = "cuda:1";
  EXPECT_TRUE(BuildSpec(flags).ok());
  flags.device = "";
  flags.gpus = 1;
  EXPECT_TRUE(BuildSpec(flags).ok());
}

TEST(BuildSpec, AGateNeedsAMeasurement) {
  SpecFlags flags;
  flags.method = "rtn";
  flags.max_perplexity_increase = 0.1;
  EXPECT_THAT(std::string(BuildSpec(flags).status().message()), HasSubstr("--evaluation FILE"));
}

TEST(BuildSpec, FlagsOfATextThatIsNotGivenAreRefused) {
  struct Case {
    const char* wanted;  // the error
    void (*set)(SpecFlags&);
  };
  const Case cases[] = {
      {"--calibration-samples has no effect without --calibration: add --calibration FILE",
       [](SpecFlags& f) { f.calibration_samples = 8; }},
      {"--calibration-length has no effect without --calibration",
       [](SpecFlags& f) { f.calibration_length = 64; }},
      {"--calibration-format has no effect without --calibration",
       [](SpecFlags& f) { f.calibration_format = "text"; }},
      {"--calibration-sampling has no effect without --calibration",
       [](SpecFlags& f) { f.calibration_sampling = "random"; }},
      {"--evaluation-length has no effect without --evaluation",
       [](SpecFlags& f) { f.evaluation_length = 64; }},
      {"--evaluation-windows has no effect without --evaluation",
       [](SpecFlags& f) { f.evaluation_windows = 3; }},
      {"--evaluation-format has no effect without --evaluation",
       [](SpecFlags& f) { f.evaluation_format = "tokens"; }},
  };
  for (const Case& c : cases) {
    SpecFlags flags;
    flags.method = "rtn";
    c.set(flags);
    EXPECT_EQ(BuildSpec(flags).status().code(), absl::StatusCode::kInvalidArgument) << c.wanted;
    EXPECT_THAT(std::string(BuildSpec(flags).status().message()), HasSubstr(c.wanted));
    flags.calibrate = flags.evaluate = true;
    EXPECT_TRUE(BuildSpec(flags).ok()) << c.wanted;
  }
}

TEST(ParseLabels, Pairs) {
  const auto labels = ParseLabels({"a=1", "b=x=y", "c="});
  ASSERT_TRUE(labels.ok());
  EXPECT_EQ(*labels, (std::map<std::string, std::string>{{"a", "1"}, {"b", "x=y"}, {"c", ""}}));
  for (const char* bad : {"a", "=1", ""}) EXPECT_FALSE(ParseLabels({bad}).ok()) << bad;
  EXPECT_FALSE(ParseLabels({"a=1", "a=2"}).ok());
}

TEST(CheckSpec, AgainstTheServersMethods) {
  v1::ListMethodsResponse methods;
  v1::MethodDescription* rtn = methods.add_methods();
  rtn->set_name("rtn");
  rtn->add_bits(4);
  rtn->add_output_formats("dense");
  SpecFlags flags;
  flags.method = "rtn";
  EXPECT_TRUE(CheckSpec(*BuildSpec(flags), methods).ok());
  flags.bits = 3;
  EXPECT_THAT(std::string(CheckSpec(*BuildSpec(flags), methods).message()), HasSubstr("got 3"));
  flags.bits = 4;
  flags.formats = {"quantry"};
  EXPECT_THAT(std::string(CheckSpec(*BuildSpec(flags), methods).message()), HasSubstr("dense"));
  flags.formats = {};
  flags.method = "awq";
  EXPECT_THAT(std::string(CheckSpec(*BuildSpec(flags), methods).message()), HasSubstr("rtn"));
}

}  // namespace
}  // namespace quantry::cli
