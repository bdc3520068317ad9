#include <gtest/gtest.h>

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>
#include <vector>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/block_file.h"
#include "worker/engine/pipeline/checkpoints.h"
#include "worker/engine/pipeline/inputs.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/manifest.h"
#include "worker/engine/pipeline/progress.h"
#include "worker/engine/pipeline/save_pace.h"
#include "worker/engine/pipeline/training_file.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/errors.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

nlohmann::json GoodJob() {
  return {
      {"model_dir", "/m"},
      {"output_dir", "/o"},
      {"epoch", "3"},
      {"seed", "-5"},
      {"method", {{"awq", {{"grid", {{"bits", 3}, {"group_size", 64}}}}}}},
      {"calibration", {{"text", {{"path", "/c"}}}, {"samples", 4}, {"sequence_length", 32}}},
      {"evaluation", {{"text", {{"path", "/e"}, {"format", "TEXT_FORMAT_TOKEN_IDS"}}}}},
      {"outputs", {{{"format", "OUTPUT_FORMAT_QUANTRY"}}, {{"format", "OUTPUT_FORMAT_DENSE"}}}}};
}

TEST(Job, ReadsProtoJson) {
  const Job job = ParseJob(GoodJob());
  EXPECT_EQ(job.epoch, 3);
  EXPECT_EQ(job.seed, -5);
  EXPECT_EQ(job.method_row->name, "awq");
  EXPECT_EQ(job.grid.bits, 3);
  EXPECT_EQ(job.calibration->windows.windows, 4);
  EXPECT_EQ(job.evaluation->windows.length, 32);  // the calibration's
  EXPECT_EQ(job.evaluation->source.format, TextFormat::kTokenIds);
  ASSERT_EQ(job.outputs.size(), 2u);
  EXPECT_EQ(job.outputs[0]->name, "quantry");
  EXPECT_EQ(job.device, "auto");
  EXPECT_EQ(job.activations.bits, 16);
}

TEST(Job, FilesThatAreNoJobAreRefused) {
  const test::TempDir dir;
  constexpr size_t kDeep = 200'000;
  for (const std::string& text :
       {std::string("{"), std::string("[]"), std::string(),
        R"({"method": )" + std::string(kDeep, '[') + std::string(kDeep, ']') + "}"}) {
    std::ofstream(dir.File("job.json"), std::ios::trunc) << text;
    EXPECT_EQ(test::ErrorOf([&] { ReadJobFile(dir.File("job.json")); }).reason, "INVALID_SPEC")
        << text.substr(0, 60);
  }
}

TEST(Job, RotatesOnlineWhereActivationsAreQuantized) {
  nlohmann::json json = GoodJob();
  EXPECT_FALSE(ParseJob(json).rotation.enabled);
  json["method"] = {{"quarot", {{"activations", {{"bits", 4}}}}}};
  EXPECT_TRUE(ParseJob(json).rotation.enabled);
  EXPECT_TRUE(ParseJob(json).rotation.online);
  json["method"]["quarot"]["rotation"]["online"] = false;
  EXPECT_FALSE(ParseJob(json).rotation.online);
  json["method"] = {{"quarot", nlohmann::json::object()}};
  EXPECT_TRUE(ParseJob(json).rotation.enabled);
  EXPECT_FALSE(ParseJob(json).rotation.online);
}

TEST(Job, WithoutOutputsItHasTheOneThatCarriesIt) {
  const auto output = [](const char* method) {
    nlohmann::json json = GoodJob();
    json.erase("outputs");
    json["method"] = nlohmann::json::parse(method);
    const Job job = ParseJob(json);
    EXPECT_EQ(job.outputs.size(), 1u);
    return job.outputs.at(0)->name;
  };
  EXPECT_EQ(output(R"({"rtn": {"grid": {"bits": 4}}})"), "compressed-tensors");
  EXPECT_EQ(output(R"({"rtn": {"grid": {"bits": 6}}})"), "quantry");
  EXPECT_EQ(output(R"({"quarot": {"activations": {"bits": 4}}})"), "quantry");
  EXPECT_EQ(output(R"({"ptq161": {}})"), "quantry");
  EXPECT_EQ(output(R"({"billm": {}})"), "dense");
}

TEST(Job, OnlyQuarotIsToldToLeaveOnlineRotationsOut) {
  nlohmann::json json = GoodJob();
  json["outputs"] = {{{"format", "OUTPUT_FORMAT_GPTQ"}}};
  const nlohmann::json activations = {{"bits", 4}};
  const std::string advice = "rotation.online = false";
  json["method"] = {{"quarot", {{"activations", activations}}}};
  EXPECT_TRUE(test::Mentions(test::ErrorOf([&] { ParseJob(json); }), advice));
  json["method"] = {{"tesseraq", {{"init", "INIT_QUAROT"}, {"activations", activations}}}};
  const EngineError error = test::ErrorOf([&] { ParseJob(json); });
  EXPECT_TRUE(test::Mentions(error, "formats that carry online rotations (dense, quantry)"));
  EXPECT_FALSE(test::Mentions(error, advice)) << error.what();
}

TEST(Job, ADefaultBatchTakesTheWindowsThereAre) {
  nlohmann::json json = GoodJob();  // 4 windows
  for (const int batch : {0, 4}) {
    json["method"] = {{"signround", {{"batch_size", batch}}}};
    EXPECT_NO_THROW(ParseJob(json)) << batch;
  }
}

TEST(Job, ALearnedRoundingsBatchIsOfTheWindowsThereAre) {
  nlohmann::json json = GoodJob();  // 4 windows
  json["outputs"] = {{{"format", "OUTPUT_FORMAT_DENSE"}}};
  json["preprocessing"] = {{"text", {{"path", "/p"}}}};
  const auto with = [&](int batch) {
    return nlohmann::json{{"recipe", "ptq161-plus"}, {"rounding_batch", batch}};
  };
  for (const int batch : {0, 4, 5}) {
    for (const auto& method : {nlohmann::json{{"ptq161", with(batch)}},
                               nlohmann::json{{"restore", {{"first_pass", with(batch)}}}}}) {
      json["method"] = method;
      if (batch <= 4) {
        EXPECT_NO_THROW(ParseJob(json)) << method;
        continue;
      }
      const EngineError error = test::ErrorOf([&] { ParseJob(json); });
      EXPECT_TRUE(test::Mentions(error, "rounding_batch 5 is larger than the 4")) << error.what();
    }
  }
}

TEST(Job, ReadsActivationBits) {
  nlohmann::json json = GoodJob();
  json["method"]["awq"]["activations"]["bits"] = 6;
  json["method"]["awq"]["grid"]["bits"] = 6;
  const Job job = ParseJob(json);
  EXPECT_EQ(job.activations.bits, 6);
  EXPECT_EQ(job.grid.bits, 6);
}

TEST(Job, ARecipeDecidesWhatIsLeftOpen) {
  nlohmann::json json = GoodJob();
  json["method"] = {{"tesseraq", {{"recipe", "tesseraq-w2g64"}}}};
  json["calibration"].erase("samples");
  json["calibration"].erase("sequence_length");
  const Job job = ParseJob(json);
  EXPECT_EQ(job.grid.bits, 2);
  EXPECT_EQ(job.grid.group_size, 64);
  EXPECT_EQ(job.calibration->windows.windows, 512);
  EXPECT_EQ(job.calibration->windows.length, 2048);
}

TEST(Job, ReadsPreprocessing) {
  nlohmann::json json = GoodJob();
  EXPECT_FALSE(ParseJob(json).preprocessing);
  json["preprocessing"] = {{"text", {{"path", "/p"}}},
                           {"lora", {{"rank", 8}, {"steps", 70}, {"dropout", -1}}}};
  const Job job = ParseJob(json);
  ASSERT_TRUE(job.preprocessing);
  EXPECT_EQ(job.preprocessing->corpus.source.path, "/p");
  EXPECT_EQ(job.preprocessing->corpus.windows.length, 32);  // the calibration's
  EXPECT_EQ(job.preprocessing->lora.rank, 8);
  EXPECT_EQ(job.preprocessing->lora.steps, 70);
  EXPECT_EQ(job.preprocessing->lora.dropout, 0);
  EXPECT_EQ(job.preprocessing->lora.alpha, 16);
}

TEST(Job, RefusesAdaptersThatCannotWork) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"dropout": 1})", "dropout"},
      {R"({"dropout": -0.5})", "dropout"},
      {R"({"steps": 7, "warmup_steps": 7})",
       "must be below steps, 7 (0 = the default, a tenth), got 7"},
      {R"({"warmup_steps": 10000})", "below steps, 10000"},
  };
  for (const auto& [lora, words] : cases) {
    nlohmann::json json = GoodJob();
    json["preprocessing"] = {{"text", {{"path", "/p"}}}, {"lora", nlohmann::json::parse(lora)}};
    const EngineError error = test::ErrorOf([&] { ParseJob(json); });
    EXPECT_EQ(error.reason, "INVALID_SPEC") << lora;
    EXPECT_TRUE(test::Mentions(error, words)) << error.what();
  }
  nlohmann::json json = GoodJob();
  json["preprocessing"] = {{"text", {{"path", "/p"}}},
                           {"lora", {{"steps", 1}, {"warmup_steps", 0}}}};
  EXPECT_NO_THROW(ParseJob(json));
}

TEST(Job, RefusesPtq161OptionsThatSayNothing) {
  for (const auto& [options, words] : {std::pair(R"({"salient_multiple": 1})", "0 or at least 2"),
                                       std::pair(R"({"stop_improvement": 1})", "below 1, got 1")}) {
    nlohmann::json json = GoodJob();
    json["outputs"] = {{{"format", "OUTPUT_FORMAT_DENSE"}}};
    json["method"] = {{"ptq161", nlohmann::json::parse(options)}};
    const EngineError error = test::ErrorOf([&] { ParseJob(json); });
    EXPECT_EQ(error.reason, "INVALID_SPEC") << options;
    EXPECT_TRUE(test::Mentions(error, words)) << error.what();
  }
}

TEST(Job, RestoreNeedsPreprocessing) {
  nlohmann::json json = GoodJob();
  json.erase("outputs");
  json["method"] = {{"restore", {{"first_pass", {{"epochs", 3}}}}}};
  EXPECT_TRUE(test::Mentions(test::ErrorOf([&] { ParseJob(json); }), "preprocessing"));
  json["preprocessing"] = {{"text", {{"path", "/p"}}}};
  const Job job = ParseJob(json);
  EXPECT_EQ(job.outputs.at(0)->name, "dense");
  EXPECT_NE(&job.method->FirstPass(), job.method.get());
  json["method"]["restore"]["first_pass"]["epoch"] = 3;
  EXPECT_TRUE(
      test::Mentions(test::ErrorOf([&] { ParseJob(json); }), "method.restore.first_pass.epoch"));
}

// bfloat16 products are rounded otherwise where the CPU makes none: a checkpoint
// of the one kind is not gone on with on the other.
TEST(Job, ItsInstructionsTellHowBfloat16IsMultiplied) {
  nlohmann::json json = GoodJob();
  json["outputs"] = {{{"format", "OUTPUT_FORMAT_DENSE"}}};
  json["preprocessing"] = {{"text", {{"path", "/p"}}}};
  const auto depends = [&](const char* method) {
    json["method"] = nlohmann::json::parse(method);
    if (json["method"].contains("tesseraq")) json.erase("preprocessing");
    const Job job = ParseJob(json);
    return Instructions(job, true) != Instructions(job, false);
  };
  EXPECT_FALSE(depends(R"({"ptq161": {}})"));
  EXPECT_FALSE(depends(R"({"ptq161": {"compute_dtype": "COMPUTE_DTYPE_FLOAT32"}})"));
  EXPECT_TRUE(depends(R"({"ptq161": {"compute_dtype": "COMPUTE_DTYPE_BFLOAT16"}})"));
  EXPECT_TRUE(
      depends(R"({"restore": {"first_pass": {"compute_dtype": "COMPUTE_DTYPE_BFLOAT16"}}})"));
  EXPECT_FALSE(depends(R"({"tesseraq": {}})"));
  EXPECT_TRUE(depends(R"({"tesseraq": {"recipe": "tesseraq-plus"}})"));
  EXPECT_FALSE(depends(
      R"({"tesseraq": {"recipe": "tesseraq-plus", "compute_dtype": "COMPUTE_DTYPE_FLOAT32"}})"));
}

// Spec: ptq161.md 10, trap 5: no result of other inputs is gone on with.
TEST(Job, ACheckpointIsKeyedByAllThatDecidesItsBytes) {
  nlohmann::json json = GoodJob();
  json["method"] = {{"ptq161", {{"epochs", 3}}}};
  json["preprocessing"] = {{"text", {{"path", "/p"}}}};
  Inputs inputs;
  for (const char* path : {"model/config.json", "model/model.safetensors", "model/tokenizer.json",
                           "calibration/c", "corpus/p", "evaluation/e"}) {
    inputs.files.push_back({path, 1, Sha256OfText(path)});
  }
  const auto key = [](const nlohmann::json& job, const Inputs& of) {
    return Fingerprint(ParseJob(job), of, at::kCPU);
  };
  const std::string first = key(json, inputs);
  EXPECT_EQ(key(json, inputs), first);
  for (size_t i = 0; i < inputs.files.size(); ++i) {
    Inputs other = inputs;
    other.files[i].sha256 = Sha256OfText("other");
    const bool decides = inputs.files[i].path != "evaluation/e";
    EXPECT_EQ(key(json, other) != first, decides) << inputs.files[i].path;
  }
  const std::pair<const char*, nlohmann::json> changes[] = {
      {"/seed", "7"},
      {"/method/ptq161/epochs", 4},
      {"/calibration/samples", 5},
      {"/calibration/sequence_length", 64},
      {"/calibration/sampling", "SAMPLING_RANDOM"},
      {"/calibration/text/format", "TEXT_FORMAT_TOKEN_IDS"},
      {"/preprocessing/lora", {{"steps", 5}}}};
  for (const auto& [pointer, value] : changes) {
    nlohmann::json other = json;
    other[nlohmann::json::json_pointer(pointer)] = value;
    EXPECT_NE(key(other, inputs), first) << pointer;
  }
  // Where things lie, and whose the job is, decides nothing.
  json["model_dir"] = "/elsewhere";
  json["output_dir"] = "/other";
  json["epoch"] = "9";
  json["calibration"]["text"]["path"] = "/d";
  json["preprocessing"]["text"]["path"] = "/q";
  EXPECT_EQ(key(json, inputs), first);
}

TEST(Job, TheFirstPassesMaskNeedsAFirstPass) {
  nlohmann::json json = GoodJob();
  json["outputs"] = {{{"format", "OUTPUT_FORMAT_DENSE"}}};
  json["method"] = {{"ptq161", {{"first_pass_mask", true}}}};
  EXPECT_TRUE(test::Mentions(test::ErrorOf([&] { ParseJob(json); }), "preprocessing"));
  json["preprocessing"] = {{"text", {{"path", "/p"}}}};
  EXPECT_NO_THROW(ParseJob(json));
}

// A job of the good one's kind with these TesseraQ options.
EngineError TesseraqError(const std::string& options) {
  nlohmann::json json = GoodJob();
  json["method"] = {{"tesseraq", nlohmann::json::parse(options)}};
  return test::ErrorOf([&] { ParseJob(json); });
}

TEST(Job, T5_RefusesTesseraqOptionsThatCannotWork) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"rounding_weight_decay": 0.1})", "rounding_weight_decay"},
      {R"({"learning_rate": -1})", "learning_rate must be above 0 (left out = default), got -1"},
      {R"({"learning_rate": 0})", "learning_rate must be above 0 (left out = default), got 0"},
      {R"({"scale_learning_rate": 0})", "scale_learning_rate"},
      {R"({"dense_learning_rate": -0.1})", "dense_learning_rate"},
      {R"({"scale_weight_decay": -0.5})", "scale_weight_decay must be -1 (none)"},
      {R"({"scale_weight_decay": -2})", "scale_weight_decay must be -1 (none)"},
      {R"({"model_tuning_steps": 5, "model_tuning_dense_rate": -0.001})",
       "model_tuning_dense_rate must be -1 (none)"},
      {R"({"schedule": [0.5, 0.6]})", "schedule"},
      {R"({"schedule": [0.5, 0.4], "stages": 2})", "stages"},
      {R"({"stages": -3})", "stages"},
      {R"({"batch_size": 5})", "batch_size 5"},
      {R"({"rounding_reach": 3})", "rounding_reach"},
      {R"({"held_out_samples": -1})", "held_out_samples"},
      {R"({"batch_size": 2, "held_out_samples": 3})", "held_out_samples 3"},
      {R"({"recipe": "best"})", "tesseraq-w2g128"},
      {R"({"recipe": "tesseraq-w2g64", "grid": {"bits": 3}})", "tesseraq-w2g64"},
      {R"({"recipe": "tesseraq-w4a4", "activations": {"bits": 8}})", "tesseraq-w4a4"},
      {R"({"init": "INIT_GUESS"})", "init"},
  };
  for (const auto& [options, words] : cases) {
    const EngineError error = TesseraqError(options);
    EXPECT_EQ(error.reason, "INVALID_SPEC") << options;
    EXPECT_TRUE(test::Mentions(error, words)) << options << ": " << error.what();
  }
}

TEST(Job, ASchedulesLengthIsBounded) {
  nlohmann::json json = GoodJob();
  json["method"] = {{"tesseraq", nlohmann::json::object()}};
  nlohmann::json& schedule = json["method"]["tesseraq"]["schedule"];
  for (int i = 1; i <= 1000; ++i) schedule.push_back(1 - i / 2000.0);
  EXPECT_NO_THROW(ParseJob(json));
  schedule.push_back(0.1);
  const EngineError error = test::ErrorOf([&] { ParseJob(json); });
  EXPECT_EQ(error.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(error, "schedule must be at most 1000 stages")) << error.what();
}

struct BadJob {
  const char* name;
  const char* patch;  // JSON merge patch
  const char* words;  // in the message
};

class BadJobTest : public ::testing::TestWithParam<BadJob> {};

TEST_P(BadJobTest, IsRefusedWithTheField) {
  nlohmann::json json = GoodJob();
  json.merge_patch(nlohmann::json::parse(GetParam().patch));
  const EngineError error = test::ErrorOf([&] { ParseJob(json); });
  EXPECT_EQ(error.reason, "INVALID_SPEC");
  EXPECT_TRUE(test::Mentions(error, GetParam().words)) << error.what();
}

INSTANTIATE_TEST_SUITE_P(
    Jobs, BadJobTest,
    ::testing::Values(
        BadJob{"unknown_field", R"({"modle_dir": "/m"})", "job.modle_dir"},
        BadJob{"unknown_option", R"({"method": {"awq": {"bits": 4}}})", "job.method.awq.bits"},
        BadJob{"no_model", R"({"model_dir": null})", "job.model_dir"},
        BadJob{"five_bits", R"({"method": {"awq": {"grid": {"bits": 5}}}})", "got 5"},
        BadJob{"zero_bits", R"({"method": {"awq": {"grid": {"bits": 0}}}})", "got 0"},
        BadJob{"nine_bit_activations", R"({"method": {"awq": {"activations": {"bits": 9}}}})",
               "activations.bits must be 2 to 8"},
        BadJob{"six_bits_in_compressed_tensors",
               R"({"method": {"awq": {"grid": {"bits": 6}}},
                   "outputs": [{"format": "OUTPUT_FORMAT_COMPRESSED_TENSORS"}]})",
               "formats that can hold this: dense, quantry"},
        BadJob{"online_rotation_in_compressed_tensors",
               R"({"method": {"awq": null, "quarot": {"activations": {"bits": 4}}},
                   "outputs": [{"format": "OUTPUT_FORMAT_COMPRESSED_TENSORS"}]})",
               "formats that carry online rotations (dense, quantry)"},
        BadJob{"quarot_gptq_without_calibration",
               R"({"method": {"awq": null, "quarot": {"gptq": true}}, "calibration": null})",
               "calibration"},
        BadJob{"damping_of_two", R"({"method": {"awq": null, "gptq": {"damping": 2}}})", "damping"},
        BadJob{"zero_rate", R"({"method": {"awq": null, "signround": {"learning_rate": 0}}})",
               "learning_rate must be above 0"},
        BadJob{"negative_rate", R"({"method": {"awq": null, "signround": {"learning_rate": -1}}})",
               "learning_rate"},
        BadJob{"signround_batch_above_the_samples",
               R"({"method": {"awq": null, "signround": {"batch_size": 5}}})",
               "batch_size 5 is larger than the 4 calibration windows"},
        BadJob{"omniquant_batch_above_the_samples",
               R"({"method": {"awq": null, "omniquant": {"batch_size": 5}}})",
               "batch_size 5 is larger than the 4 calibration windows"},
        BadJob{"negative_group", R"({"method": {"awq": {"grid": {"group_size": -2}}}})", "-2"},
        BadJob{"two_methods", R"({"method": {"rtn": {}}})", "one method"},
        BadJob{"unknown_method", R"({"method": {"awq": null, "magic": {}}})", "magic"},
        BadJob{"no_method", R"({"method": null})", "rtn, awq"},
        BadJob{"no_calibration", R"({"calibration": null})", "method awq needs it"},
        BadJob{"many_samples", R"({"calibration": {"samples": 99999999}})", "samples"},
        BadJob{"one_token", R"({"calibration": {"sequence_length": 1}})", "at least 2"},
        BadJob{"bad_format", R"({"outputs": [{"format": "GGUF"}]})", "OUTPUT_FORMAT_DENSE"},
        BadJob{"awq_of_three_bits", R"({"outputs": [{"format": "OUTPUT_FORMAT_AWQ"}]})",
               "quantry, gptq, int4-carrier"},
        BadJob{"v1_with_zero_points_of_zero",
               R"({"outputs": [{"format": "OUTPUT_FORMAT_GPTQ_V1"}]})", "zero_point_at_least_one"},
        BadJob{
            "format_twice",
            R"({"outputs": [{"format": "OUTPUT_FORMAT_DENSE"},{"format": "OUTPUT_FORMAT_DENSE"}]})",
            "twice"},
        BadJob{"gate_without_evaluation",
               R"({"evaluation": null, "quality_gate": {"max_perplexity_ratio": 1.1}})",
               "quality_gate"},
        BadJob{"gate_below_zero", R"({"quality_gate": {"max_perplexity_ratio": -1}})", "ratio"}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

QuantizedBlock MakeBlock(int index) {
  at::manual_seed(index);
  QuantizedBlock block;
  block.index = index;
  block.linears.push_back(
      QuantizeNearest("q", at::randn({9, 22}), at::randn({9}), {3, 11, false}, at::kHalf));
  block.linears.push_back(
      QuantizeNearest("k", at::randn({5, 22}), {}, {3, -1, true}, at::kBFloat16));
  block.dense["norm.weight"] = at::randn({22}).to(at::kBFloat16);
  return block;
}

MixedBinaryWeight MakeMixed() {
  at::manual_seed(3);
  MixedBinaryWeight weight;
  weight.columns = 7;
  weight.salient = at::tensor({1, 6}, at::kInt);
  weight.codes = at::randint(16, {4, 2}, at::kByte);
  weight.scales = at::tensor({0.5, 0.25, 1.0, 2.0}, at::kFloat);
  weight.zeros = at::randint(16, {4}, at::kByte);
  weight.signs = at::randint(2, {4, 5}, at::kByte);
  weight.row_gain = at::tensor({-0.5, 0.25, 0.0, 2.0}, at::kFloat);
  weight.row_offset = at::tensor({0.5, -0.25, 1.0, 2.0}, at::kFloat);
  weight.column_gain = at::tensor({1.0, 2.0, 3.0, 4.0, 5.0}, at::kFloat);
  return weight;
}

void Damage(const std::string& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-3, std::ios::end);
  file.put('\x5a');
}

TEST(BlockFile, RoundTripsAndSeesDamage) {
  const test::TempDir dir;
  BlockReport report;
  report.index = 4;
  report.loss_rtn = 0.1;
  report.loss_final = 1.0 / 3.0;
  report.metrics["m"] = 2.5;
  const QuantizedBlock block = MakeBlock(4);
  WriteBlockFile(dir.File("b"), block, report);
  const StoredBlock stored = ReadBlockFile(dir.File("b"));
  EXPECT_EQ(BlockDigest(stored.block), BlockDigest(block));
  EXPECT_EQ(stored.block.index, 4);
  EXPECT_EQ(stored.report.loss_final, report.loss_final);
  EXPECT_EQ(stored.report.metrics, report.metrics);
  EXPECT_NE(BlockDigest(block), BlockDigest(MakeBlock(5)));
  Damage(dir.File("b"));
  EXPECT_EQ(test::ErrorOf([&] { ReadBlockFile(dir.File("b")); }).reason, "CHECKPOINT_CORRUPT");
}

TEST(BlockFile, RoundTripsMixedWeights) {
  const test::TempDir dir;
  QuantizedBlock block = MakeBlock(2);
  block.linears[1].mixed = MakeMixed();
  block.linears[1].codes = block.linears[1].scales = block.linears[1].zeros = at::Tensor();
  WriteBlockFile(dir.File("b"), block, {});
  const QuantizedBlock stored = ReadBlockFile(dir.File("b")).block;
  EXPECT_EQ(BlockDigest(stored), BlockDigest(block));
  ASSERT_TRUE(stored.linears[1].mixed);
  EXPECT_TRUE(at::equal(stored.linears[1].Dequantize(), block.linears[1].Dequantize()));
  const auto differs = [&](const std::function<void(MixedBinaryWeight&)>& change) {
    QuantizedBlock other = block;
    change(*other.linears[1].mixed);
    EXPECT_NE(BlockDigest(other), BlockDigest(block));
  };
  differs([](MixedBinaryWeight& w) { w.salient = w.salient + 1; });
  differs([](MixedBinaryWeight& w) { w.codes = w.codes.bitwise_xor(1); });
  differs([](MixedBinaryWeight& w) { w.scales = w.scales * 2; });
  differs([](MixedBinaryWeight& w) { w.zeros = w.zeros.bitwise_xor(1); });
  differs([](MixedBinaryWeight& w) { w.signs = w.signs.bitwise_xor(1); });
  differs([](MixedBinaryWeight& w) { w.row_gain = -w.row_gain; });
  differs([](MixedBinaryWeight& w) { w.row_offset = -w.row_offset; });
  differs([](MixedBinaryWeight& w) { w.column_gain = -w.column_gain; });
}

TEST(TrainingFile, RoundTripsAndSeesDamage) {
  const test::TempDir dir;
  at::manual_seed(4);
  TrainingState state;
  state.steps_done = 7;
  state.loss_first = 2.5;
  state.loss_last = 1.0 / 3.0;
  state.tensors = {at::randn({2, 3}), at::randn({4, 2})};
  for (int i = 0; i < 4; ++i) state.moments.push_back(at::randn({5}));
  const std::string path = dir.File("training");
  WriteTrainingFile(path, "print", state);
  const std::optional<TrainingState> read = ReadTrainingFile(path, "print");
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->steps_done, 7);
  EXPECT_EQ(read->loss_last, state.loss_last);
  EXPECT_TRUE(read->tensors.at(1).equal(state.tensors[1]));
  EXPECT_TRUE(read->moments.at(3).equal(state.moments[3]));
  EXPECT_FALSE(ReadTrainingFile(path, "other").has_value());
  EXPECT_FALSE(ReadTrainingFile(dir.File("none"), "print").has_value());
  std::string other = ReadFile(path, 1 << 20, "TEST");
  const std::string steps = R"(steps_done\":7)";
  other.replace(other.find(steps), steps.size(), R"(steps_done\":6)");
  WriteFileAtomically(path, other);
  EXPECT_FALSE(ReadTrainingFile(path, "print").has_value()) << "the progress counts, too";
  WriteTrainingFile(path, "print", state);
  Damage(path);
  EXPECT_FALSE(ReadTrainingFile(path, "print").has_value());
}

// Hours of adapters are not lost because the disk does not answer.
TEST(TrainingFile, ADiskThatCannotSayIsNoReasonToStartOver) {
  const test::TempDir dir;
  const std::string path = dir.File("training");
  std::filesystem::create_symlink(path, path);  // stat fails, and not with "absent"
  const EngineError error = test::ErrorOf([&] { ReadTrainingFile(path, "print"); });
  EXPECT_EQ(error.reason, "STORAGE_ERROR") << error.what();
  EXPECT_TRUE(test::Mentions(error, "training")) << error.what();
}

class CheckpointsTest : public ::testing::Test {
 protected:
  // Two blocks done of three.
  void Fill() {
    Checkpoints checkpoints(dir_.path(), "print");
    for (int i = 0; i < 2; ++i) {
      checkpoints.StoreBlock(MakeBlock(i), {});
      const Streams streams{at::full({2, 3, 4}, i + 1.0), at::full({2, 3, 4}, i + 1.5)};
      files_ = checkpoints.Commit(i + 1, &streams);
    }
  }

  int Resume(const std::string& fingerprint) {
    Checkpoints checkpoints(dir_.path(), fingerprint);
    return checkpoints.Resume(3, &streams_, [&](const std::string& text) { warnings_ += text; });
  }

  test::TempDir dir_;
  std::vector<HashedFile> files_;
  Streams streams_;
  std::string warnings_;
};

TEST_F(CheckpointsTest, ResumesFromTheNewest) {
  Fill();
  EXPECT_EQ(files_.size(), 4u);  // two blocks, one stream, state.json
  EXPECT_FALSE(IsRegularFile(dir_.File("streams-00001.safetensors")));
  EXPECT_EQ(Resume("print"), 2);
  EXPECT_EQ(streams_.x_fp[0][0][0].item<float>(), 2.0F);
  EXPECT_EQ(streams_.x_q[1][2][3].item<float>(), 2.5F);
  EXPECT_EQ(warnings_, "");
}

TEST_F(CheckpointsTest, IgnoresForeignAndDamagedOnes) {
  Fill();
  EXPECT_EQ(Resume("other"), 0);
  EXPECT_NE(warnings_.find("is ignored and removed: it belongs to another job"), std::string::npos)
      << warnings_;
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
  for (const char* name : {"block-00000.safetensors", "streams-00002.safetensors", "state.json"}) {
    warnings_.clear();
    Fill();
    Damage(dir_.File(name));
    EXPECT_EQ(Resume("print"), 0) << name;
    EXPECT_NE(warnings_.find("is ignored and removed"), std::string::npos) << name;
    EXPECT_TRUE(std::filesystem::is_empty(dir_.path())) << name;
    EXPECT_FALSE(streams_.defined());
  }
}

// What may be read again tomorrow is not thrown away.
TEST_F(CheckpointsTest, AFileThatCannotBeReadIsNoReasonToStartOver) {
  Fill();
  const std::string block = dir_.File("block-00000.safetensors"), aside = dir_.File("aside");
  std::filesystem::rename(block, aside);
  std::filesystem::create_directory(block);  // opens, and does not read
  const EngineError error = test::ErrorOf([&] { Resume("print"); });
  EXPECT_EQ(error.reason, "READ_FAILED") << error.what();
  EXPECT_TRUE(test::Mentions(error, "block-00000")) << error.what();
  std::filesystem::remove(block);
  std::filesystem::rename(aside, block);
  EXPECT_EQ(Resume("print"), 2) << warnings_;
  std::filesystem::remove(block);
  EXPECT_EQ(Resume("print"), 0);
  EXPECT_NE(warnings_.find("block-00000.safetensors is absent"), std::string::npos) << warnings_;
}

TEST_F(CheckpointsTest, KeepsTheNewestStageOfTheBlockInProgress) {
  const auto state = [](int stages) {
    return StageState{
        stages, 0.5, 0.25, 3, {at::full({2, 3}, 1.0 * stages)}, {at::ones({2, 1})}, {at::ones(3)}};
  };
  const auto reopened = [&](int blocks_done) {
    Checkpoints checkpoints(dir_.path(), "print");
    Streams streams;
    EXPECT_EQ(checkpoints.Resume(3, &streams, [](const std::string&) {}), blocks_done);
    return checkpoints.LoadStage(blocks_done);
  };
  Checkpoints checkpoints(dir_.path(), "print");
  checkpoints.CommitStage(0, state(2));  // before any block is done
  ASSERT_TRUE(reopened(0).has_value());
  checkpoints.CommitStage(0, state(7));
  const std::optional<StageState> found = reopened(0);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->stages_done, 7);
  EXPECT_EQ(found->learning_rate_share, 0.5);
  EXPECT_EQ(found->loss_soft, 0.25);
  EXPECT_EQ(found->retries, 3);
  EXPECT_TRUE(found->logits.at(0).eq(7).all().item<bool>());
  EXPECT_EQ(found->dense.size(), 1u);
  checkpoints.StoreBlock(MakeBlock(0), {});
  const Streams streams{at::ones({1, 2, 3}), at::ones({1, 2, 3})};
  checkpoints.Commit(1, &streams);
  EXPECT_FALSE(reopened(1).has_value());
}

TEST_F(CheckpointsTest, TunedBlocksReplaceAllOthersAtOnce) {
  Fill();
  Checkpoints checkpoints(dir_.path(), "print");
  Streams streams;
  ASSERT_EQ(checkpoints.Resume(2, &streams, [](const std::string&) {}), 2);
  EXPECT_TRUE(streams.defined());  // kept for tuning, though no block is left
  EXPECT_FALSE(checkpoints.tuned());
  std::vector<StoredBlock> blocks;
  for (const int seed : {5, 6}) blocks.push_back({MakeBlock(seed), {}});
  blocks[0].block.index = 0;
  blocks[1].block.index = 1;
  checkpoints.CommitTuned(blocks);
  Checkpoints again(dir_.path(), "print");
  ASSERT_EQ(again.Resume(2, &streams, [](const std::string&) {}), 2);
  EXPECT_TRUE(again.tuned());
  EXPECT_EQ(BlockDigest(again.Load(1).block), BlockDigest(blocks[1].block));
  EXPECT_FALSE(IsRegularFile(dir_.File("block-00000.safetensors")));
}

TEST_F(CheckpointsTest, KeepsTheNewestStepOfTuning) {
  Fill();
  Checkpoints checkpoints(dir_.path(), "print");
  Streams streams;
  ASSERT_EQ(checkpoints.Resume(2, &streams, [](const std::string&) {}), 2);
  EXPECT_FALSE(checkpoints.LoadTuning().has_value());
  TrainingState state;
  state.tensors = {at::ones({3})};
  state.moments = {at::ones({3}), at::ones({3})};
  for (const int steps : {4, 9}) {
    state.steps_done = steps;
    checkpoints.CommitTuning(2, state);
  }
  EXPECT_FALSE(IsRegularFile(dir_.File("tuning-0-00004.safetensors")));
  Checkpoints again(dir_.path(), "print");
  ASSERT_EQ(again.Resume(2, &streams, [](const std::string&) {}), 2);
  EXPECT_TRUE(streams.defined());
  ASSERT_TRUE(again.LoadTuning().has_value());
  EXPECT_EQ(again.LoadTuning()->steps_done, 9);
  std::vector<StoredBlock> blocks;
  for (const int index : {0, 1}) blocks.push_back(again.Load(index));
  again.CommitTuned(blocks);
  EXPECT_FALSE(IsRegularFile(dir_.File("tuning-0-00009.safetensors")));
}

// What took hours to learn is not thrown away for what took seconds.
TEST_F(CheckpointsTest, ADamagedStepOfTuningCostsItselfAlone) {
  Fill();
  Checkpoints checkpoints(dir_.path(), "print");
  Streams streams;
  const auto warn = [this](const std::string& text) { warnings_ += text; };
  ASSERT_EQ(checkpoints.Resume(2, &streams, warn), 2);
  TrainingState state;
  state.steps_done = 4;
  state.tensors = {at::ones({3})};
  state.moments = {at::ones({3}), at::ones({3})};
  checkpoints.CommitTuning(2, state);
  const std::string file = "tuning-0-00004.safetensors";
  for (const bool absent : {false, true}) {
    absent ? (void)std::filesystem::remove(dir_.File(file))
           : std::filesystem::resize_file(dir_.File(file), 100);
    warnings_.clear();
    Checkpoints again(dir_.path(), "print");
    ASSERT_EQ(again.Resume(2, &streams, warn), 2);
    EXPECT_FALSE(again.LoadTuning().has_value());
    EXPECT_EQ(again.Load(1).block.index, 1);
    EXPECT_NE(warnings_.find(file + (absent ? " is absent" : " is damaged")), std::string::npos)
        << warnings_;
    EXPECT_FALSE(IsRegularFile(dir_.File(file)));
  }
}

TEST_F(CheckpointsTest, ADeathBeforeTheStateLeavesTheOlderCheckpoint) {
  Fill();
  Checkpoints checkpoints(dir_.path(), "print");
  checkpoints.StoreBlock(MakeBlock(2), {});  // and then dies
  EXPECT_EQ(Resume("print"), 2);
  EXPECT_FALSE(IsRegularFile(dir_.File("block-00002.safetensors")));
}

// A name of a checkpoint may be megabytes long, its event is a short line.
TEST(Events, ErrorsAreShortWhateverTheyQuote) {
  const test::TempDir dir;
  const int fd = open(dir.File("events").c_str(), O_CREAT | O_WRONLY, 0600);
  const std::string name = std::string(3 << 20, 'x') + ".bin";
  const std::string accents = [] {  // two bytes each, one of them at the limit
    std::string text = "x";
    for (int i = 0; i < 2000; ++i) text += "\u00e9";
    return text;
  }();
  EventWriter(fd).Error(
      UserError("INVALID_CHECKPOINT", "the shard " + name,
                {{"file", name}, {"path", "/a/\u00e9.json"}, {"accents", accents}}));
  close(fd);
  const std::string line = ReadFile(dir.File("events"), 1 << 24, "TEST");
  EXPECT_LT(line.size(), 12'000U);
  const auto error = nlohmann::json::parse(line).at("error");
  EXPECT_EQ(error.at("reason"), "INVALID_CHECKPOINT");
  EXPECT_LT(error.at("message").get<std::string>().size(), 8192U);
  EXPECT_TRUE(error.at("metadata").at("file").get<std::string>().ends_with("xxx..."));
  EXPECT_EQ(error.at("metadata").at("path"), "/a/\u00e9.json");
  EXPECT_TRUE(error.at("metadata").at("accents").get<std::string>().ends_with("\u00e9..."));
}

TEST(Progress, GrowsStrictlyAndTellsTheTimeLeft) {
  const test::TempDir dir;
  const int fd = open(dir.File("events").c_str(), O_CREAT | O_WRONLY, 0600);
  double now = 0;
  {
    EventWriter events(fd);
    StepPlan plan;
    plan.blocks = 2;
    plan.calibrating = 1;
    plan.per_block = 10;
    plan.packing = 2;
    plan.evaluating = 4;
    plan.evaluating_weight = 1.0;
    ProgressTracker tracker(
        plan, events, [&] { return now; }, 0, [] { return int64_t{0}; });
    tracker.EnterStage(Stage::kQuantizing);
    for (int block = 0; block < 2; ++block) {
      tracker.BlockStarted();
      for (int i = 0; i < 10; ++i) {
        now += 0.3;
        if (i < 5) tracker.Measure({{"stage_step", i + 1}, {"flip_ratio", 0.5}});
        tracker.Advance(1, "");
      }
      BlockReport report;
      report.loss_rtn = std::nan("");
      report.index = block;
      report.seconds = 3 + block;
      report.metrics = {{"flip_ratio", 0.25}};
      tracker.BlockDone(report, 0.5);
    }
    const std::vector<Span> spans = tracker.spans();
    ASSERT_EQ(spans.size(), 4u);  // loading, quantizing, its two blocks
    EXPECT_EQ(spans[0].name, "loading");
    EXPECT_EQ(spans[1].name, "quantizing");
    EXPECT_DOUBLE_EQ(spans[1].end, now);
    EXPECT_EQ(spans[3].block, 1);
    EXPECT_NEAR(spans[3].end - spans[3].begin, 3, 1e-9);
  }
  close(fd);
  std::istringstream lines(ReadFile(dir.File("events"), 1 << 20, "TEST"));
  std::string line;
  int64_t last = 0;
  std::set<int64_t> told;
  int with_eta = 0;
  while (std::getline(lines, line)) {
    const auto event = nlohmann::json::parse(line);
    if (!event.contains("progress")) continue;
    const auto& progress = event.at("progress");
    EXPECT_GT(progress.at("steps_done").get<int64_t>(), last);
    last = progress.at("steps_done").get<int64_t>();
    told.insert(last);
    EXPECT_EQ(progress.at("steps_total").get<int64_t>(), 27);
    EXPECT_FALSE(progress.contains("loss_before"));
    with_eta += progress.contains("eta");
    EXPECT_EQ(progress.contains("eta"), with_eta > 0);  // it does not go away again
    const auto& metrics = progress.at("metrics");
    if (progress.at("steps_done") == 10) {
      EXPECT_EQ(metrics.at("stage_step"), 5) << "stands until the next block";
      EXPECT_EQ(metrics.at("flip_ratio"), 0.25) << "of the finished block";
      EXPECT_EQ(metrics.at("block_seconds"), 3);
    }
    if (progress.at("steps_done") == 12) {
      EXPECT_EQ(metrics.at("stage_step"), 2);
      EXPECT_EQ(metrics.at("flip_ratio"), 0.5);
      EXPECT_EQ(metrics.at("block_seconds"), 3);
    }
    if (progress.at("steps_done") == 3) {
      EXPECT_EQ(progress.at("eta"), "5.1s");  // 17 steps of 0.3 s, the first block's word for it
    }
    if (progress.at("steps_done") == 20) {
      EXPECT_EQ(progress.at("eta"), "2.0s");  // four evaluations of a forward pass each
    }
  }
  EXPECT_EQ(told, (std::set<int64_t>{1, 3, 5, 7, 9, 10, 12, 14, 16, 18, 20}));
  EXPECT_GT(with_eta, 0);
}

// What `work` wrote of progress.
std::vector<nlohmann::json> Told(const std::function<void(EventWriter&)>& work) {
  const test::TempDir dir;
  const int fd = open(dir.File("events").c_str(), O_CREAT | O_WRONLY, 0600);
  {
    EventWriter events(fd);
    work(events);
  }
  close(fd);
  std::istringstream lines(ReadFile(dir.File("events"), 1 << 20, "TEST"));
  std::vector<nlohmann::json> told;
  for (std::string line; std::getline(lines, line);) {
    const auto event = nlohmann::json::parse(line);
    if (event.contains("progress")) told.push_back(event["progress"]);
  }
  return told;
}

// The same of a tracker that `work` uses.
std::vector<nlohmann::json> Told(const StepPlan& plan, double& now,
                                 const std::function<void(ProgressTracker&)>& work) {
  return Told([&](EventWriter& events) {
    ProgressTracker tracker(
        plan, events, [&] { return now; }, 0, [] { return int64_t{0}; });
    work(tracker);
  });
}

// Reading a large model takes longer than a server waits for a step.
TEST(Progress, TellsTheBytesThatAreLoadedAFewTimesASecond) {
  double now = 5;
  const Seconds clock = [&] { return now; };
  const auto told = Told([&](EventWriter& events) {
    LoadingMeter meter(events, clock);
    for (int i = 0; i < 10; ++i) {
      now += 0.25;
      meter.Count(100);
    }
  });
  ASSERT_EQ(told.size(), 5U);
  EXPECT_EQ(told[0].at("stage"), "STAGE_LOADING");
  EXPECT_EQ(told[0].at("metrics").at("loaded_bytes"), 200);
  EXPECT_EQ(told[4].at("metrics").at("loaded_bytes"), 1000);
}

// Adapters go on from step 600 of 1000, 2 s each; no block has been timed.
TEST(Progress, TellsThePhasesTimeLeftAfterAResume) {
  double now = 0;
  StepPlan plan;
  plan.blocks = 2;
  plan.preprocessing = 1000;
  plan.per_block = 10;
  const auto told = Told(plan, now, [&](ProgressTracker& tracker) {
    tracker.EnterStage(Stage::kPreprocessing);
    tracker.Advance(600, "taken from the checkpoint");
    tracker.PhaseStarted(400);
    for (int i = 0; i < 100; ++i) {
      now += 2;
      tracker.Advance(1, "training adapters");
    }
  });
  ASSERT_EQ(told.size(), 101U);
  EXPECT_FALSE(told[0].contains("eta"));
  EXPECT_EQ(told[1].value("eta", ""), "798.0s");
  EXPECT_EQ(told[100].value("eta", ""), "600.0s");
}

// A block goes on from step 90 of 100: what is left of it says what a whole one costs.
TEST(Progress, TellsTheTimeLeftAfterAResumeInsideABlock) {
  double now = 0;
  StepPlan plan;
  plan.blocks = 3;
  plan.per_block = 100;
  const auto told = Told(plan, now, [&](ProgressTracker& tracker) {
    tracker.EnterStage(Stage::kQuantizing);
    tracker.BlockStarted();
    tracker.TakeOver(90);
    for (int i = 0; i < 10; ++i) {
      now += 2;
      tracker.Advance(1, "learning roundings");
    }
    tracker.BlockDone(BlockReport(), 0);
    tracker.BlockStarted();
    now += 2;
    tracker.Advance(1, "learning roundings");
  });
  ASSERT_GE(told.size(), 12U);
  EXPECT_FALSE(told[0].contains("eta"));
  EXPECT_EQ(told[5].value("eta", ""), "410.0s");  // 5 steps and two blocks of 100, 2 s each
  EXPECT_EQ(told[10].value("eta", ""), "400.0s");
  EXPECT_EQ(told.back().value("eta", ""), "398.0s");
}

// A stage is done again: each step counts, and the total grows by as many.
TEST(Progress, StepsDoneAgainCount) {
  double now = 0;
  StepPlan plan;
  plan.blocks = 1;
  plan.per_block = 4;
  const auto told = Told(plan, now, [&](ProgressTracker& tracker) {
    tracker.EnterStage(Stage::kQuantizing);
    tracker.BlockStarted();
    for (int i = 0; i < 6; ++i) {
      if (i == 2) tracker.Extend(2);
      now += 1;
      tracker.Advance(1, "learning roundings");
    }
  });
  ASSERT_EQ(told.size(), 6U);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(told[i].at("steps_done"), i + 1);
    EXPECT_EQ(told[i].at("steps_total"), i < 2 ? 4 : 6);
  }
  EXPECT_EQ(told[2].value("eta", ""), "3.0s");
  EXPECT_EQ(told[5].at("ratio"), 1);
}

TEST(SavePace, KeepsEveryHalfMinuteAndNoMoreThanAFewPercentOfTheTime) {
  double now = 0;
  const Seconds clock = [&] { return now; };
  SavePace pace(clock);
  std::vector<double> kept;
  const auto keep = [&](bool must, double cost) {
    pace.Keep(must, [&] {
      kept.push_back(now);
      now += cost;
    });
  };
  for (; now < 100; ++now) keep(false, 0);
  EXPECT_EQ(kept, (std::vector<double>{30, 60, 90}));
  kept.clear();
  keep(true, 4);  // 100 to 104: the next is due after 30 times 4 s
  for (; now < 230; ++now) keep(false, 0);
  EXPECT_EQ(kept, (std::vector<double>{100, 224}));
}

TEST(Gate, ComparesRatioAndIncrease) {
  EvaluationResult quality;
  quality.perplexity_dense = 10;
  quality.perplexity_quantized = 12;
  EXPECT_FALSE(GateFails({0, 0}, quality));
  EXPECT_FALSE(GateFails({1.2, 2}, quality));
  EXPECT_TRUE(GateFails({1.19, 0}, quality));
  EXPECT_TRUE(GateFails({0, 1.9}, quality));
  quality.perplexity_quantized = std::nan("");
  EXPECT_TRUE(GateFails({1.2, 0}, quality));
}

}  // namespace
}  // namespace quantry::engine
