#include "worker/engine/pipeline/reproduction.h"

#include <gtest/gtest.h>

#include "worker/engine/pipeline/testing/report_fixture.h"

namespace quantry::engine {
namespace {

nlohmann::json SmallJob() {
  nlohmann::json job = test::FinishedJobJson();
  job.erase("evaluation");
  job["outputs"].erase(1);
  return job;
}

std::string CommandOf(const nlohmann::json& job) {
  return Reproduction(ParseJob(job), {2, "cpu"}).at("command").get<std::string>();
}

TEST(Reproduction, NamesEveryFlagThatDecidesTheBytes) {
  EXPECT_EQ(CommandOf(SmallJob()),
            "quantry submit MODEL_DIR --method-config METHOD_CONFIG --calibration CALIBRATION_FILE "
            "--calibration-length 32 --calibration-samples 4 --format quantry --seed=-5 "
            "--threads 2 --device cpu");
}

TEST(Reproduction, KeepsTheMethodAsGivenAndNoPlaces) {
  const auto json = Reproduction(ParseJob(SmallJob()), {2, "cpu"});
  EXPECT_EQ(json.at("method").at("awq").at("grid").at("bits"), 3);
  EXPECT_EQ(json.dump().find("/secret"), std::string::npos);
}

// What a machine chose is another's to choose again: it is told, and only that.
TEST(Reproduction, ThePermittedTypeOfProductsIsTheOneThatWasUsed) {
  nlohmann::json job = SmallJob();
  const auto method = [&](const char* options, ComputeDtype compute) {
    job["method"] = {{"tesseraq", nlohmann::json::parse(options)}};
    return Reproduction(ParseJob(job), {2, "cpu", compute}).at("method");
  };
  const char* plus = R"({"recipe": "tesseraq-plus"})";
  EXPECT_EQ(method(plus, ComputeDtype::kBfloat16).dump(),
            R"({"tesseraq":{"compute_dtype":"COMPUTE_DTYPE_BFLOAT16","recipe":"tesseraq-plus"}})");
  EXPECT_EQ(method(plus, ComputeDtype::kFloat32).at("tesseraq").at("compute_dtype"),
            "COMPUTE_DTYPE_FLOAT32");
  EXPECT_FALSE(method("{}", ComputeDtype::kFloat32).at("tesseraq").contains("compute_dtype"));
}

TEST(Reproduction, TextsGatesAndPreprocessing) {
  nlohmann::json job = SmallJob();
  job["calibration"]["sampling"] = "SAMPLING_RANDOM";
  job["calibration"]["text"]["format"] = "TEXT_FORMAT_TOKEN_IDS";
  job["evaluation"] = {{"text", {{"path", "/e"}}}, {"sequence_length", 16}, {"windows", 3}};
  job["quality_gate"] = {{"max_perplexity_ratio", 1.05}};
  job["preprocessing"] = {{"text", {{"path", "/p"}}}, {"lora", {{"rank", 8}, {"steps", 70}}}};
  const std::string command = CommandOf(job);
  for (const char* words :
       {"--calibration-format tokens", "--calibration-sampling random",
        "--evaluation EVALUATION_FILE --evaluation-length 16 --evaluation-windows 3",
        "--max-perplexity-ratio 1.05",
        "--preprocessing lora --preprocessing-corpus CORPUS_FILE --preprocessing-length 32 "
        "--preprocessing-steps 70 --preprocessing-rank 8"}) {
    EXPECT_NE(command.find(words), std::string::npos) << words << "\n" << command;
  }
}

// Each has a flag in client/cli/preprocessing_options.cc.
TEST(Reproduction, EveryOptionOfTheAdapters) {
  nlohmann::json job = SmallJob();
  const auto command_with = [&](const nlohmann::json& lora) {
    job["preprocessing"] = {{"text", {{"path", "/p"}}}, {"lora", lora}};
    const std::string command = CommandOf(job);
    const size_t begin = command.find("--preprocessing-steps");
    return command.substr(begin, command.find(" --format") - begin);
  };
  EXPECT_EQ(command_with({{"steps", 70}}), "--preprocessing-steps 70");
  EXPECT_EQ(command_with({{"steps", 70}, {"dropout", -1}}),
            "--preprocessing-steps 70 --preprocessing-dropout 0.0");
  EXPECT_EQ(command_with({{"rank", 8},
                          {"alpha", 32},
                          {"dropout", 0.25},
                          {"steps", 70},
                          {"accumulation", 4},
                          {"learning_rate", 0.002},
                          {"warmup_steps", 7},
                          {"clip_norm", 0.5},
                          {"attention_output", true}}),
            "--preprocessing-steps 70 --preprocessing-rank 8 --preprocessing-alpha 32.0 "
            "--preprocessing-dropout 0.25 --preprocessing-accumulation 4 "
            "--preprocessing-learning-rate 0.002 --preprocessing-warmup-steps 7 "
            "--preprocessing-clip-norm 0.5 --preprocessing-attention-output");
}

}  // namespace
}  // namespace quantry::engine
