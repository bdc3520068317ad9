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
  return Reproduction(ParseJob(job), 2, "cpu").at("command").get<std::string>();
}

TEST(Reproduction, NamesEveryFlagThatDecidesTheBytes) {
  EXPECT_EQ(CommandOf(SmallJob()),
            "quantry submit MODEL_DIR --method-config METHOD_CONFIG --calibration CALIBRATION_FILE "
            "--calibration-length 32 --calibration-samples 4 --format quantry --seed=-5 "
            "--threads 2 --device cpu");
}

TEST(Reproduction, KeepsTheMethodAsGivenAndNoPlaces) {
  const auto json = Reproduction(ParseJob(SmallJob()), 2, "cpu");
  EXPECT_EQ(json.at("method").at("awq").at("grid").at("bits"), 3);
  EXPECT_EQ(json.dump().find("/secret"), std::string::npos);
  EXPECT_FALSE(json.contains("not_in_command"));
}

TEST(Reproduction, TextsGatesAndPreprocessing) {
  nlohmann::json job = SmallJob();
  job["calibration"]["sampling"] = "SAMPLING_RANDOM";
  job["calibration"]["text"]["format"] = "TEXT_FORMAT_TOKEN_IDS";
  job["evaluation"] = {{"text", {{"path", "/e"}}}, {"sequence_length", 16}, {"windows", 3}};
  job["quality_gate"] = {{"max_perplexity_ratio", 1.05}};
  job["preprocessing"] = {{"text", {{"path", "/p"}}},
                          {"lora", {{"rank", 8}, {"steps", 70}, {"clip_norm", 0.5}}}};
  const std::string command = CommandOf(job);
  for (const char* words :
       {"--calibration-format tokens", "--calibration-sampling random",
        "--evaluation EVALUATION_FILE --evaluation-length 16 --evaluation-windows 3",
        "--max-perplexity-ratio 1.05",
        "--preprocessing lora --preprocessing-corpus CORPUS_FILE --preprocessing-length 32 "
        "--preprocessing-steps 70 --preprocessing-rank 8"}) {
    EXPECT_NE(command.find(words), std::string::npos) << words << "\n" << command;
  }
  const auto json = Reproduction(ParseJob(job), 2, "cpu");
  EXPECT_EQ(json.at("not_in_command"),
            "preprocessing.lora: clip_norm 0.5; set them through the API");
}

}  // namespace
}  // namespace quantry::engine
