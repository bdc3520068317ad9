#include "worker/engine/pipeline/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/line_plot.h"
#include "worker/engine/pipeline/testing/report_fixture.h"
#include "worker/engine/pipeline/warnings.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

int Count(const std::string& text, const std::string& word) {
  int count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

TEST(LinePlot, DrawsEveryValueAndLeavesGaps) {
  const double gap = std::nan("");
  const std::string svg = LinePlotSvg(
      {"a < b", "x", "y", {{"one", "#111111", {1, 10, gap, 1000}}, {"none", "#222222", {gap, 0}}}});
  EXPECT_EQ(Count(svg, "<circle"), 3);
  EXPECT_EQ(Count(svg, "<path"), 1);
  EXPECT_EQ(Count(svg, "M"), 2);  // two pieces of one path
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_EQ(svg.find("none</text>"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(LinePlot, LargerValuesStandHigher) {
  const std::string svg = LinePlotSvg({"t", "x", "y", {{"one", "#111111", {1, 100}}}});
  const auto y = [&](size_t from) { return std::stod(svg.substr(svg.find("cy=\"", from) + 4)); };
  const size_t first = svg.find("<circle");
  EXPECT_GT(y(first), y(svg.find("<circle", first + 1)));
}

TEST(LinePlot, OneFlatPointStillHasAnAxis) {
  const std::string svg = LinePlotSvg({"t", "x", "y", {{"one", "#111111", {3}}}});
  EXPECT_EQ(Count(svg, "<circle"), 1);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(LinePlotSvg({"t", "x", "y", {{"one", "#111111", {0, -1}}}}), "");
}

TEST(Warnings, LinearsRoundedToNearestAreNamed) {
  BlockReport plain, nearest;
  plain.metrics = {{"damping.mlp.up_proj", 0.1}};
  nearest.index = 1;
  nearest.metrics = {{"rounded_to_nearest.mlp.down_proj", 1}, {"loss.mlp.up_proj", 2}};
  EXPECT_EQ(NearestWarning({plain}), "");
  const std::string told = NearestWarning({plain, nearest});
  EXPECT_NE(told.find("block 1's mlp.down_proj"), std::string::npos) << told;
  EXPECT_EQ(told.find("up_proj"), std::string::npos) << told;
}

// Scales that changed are counted anew; what a method counted of its gains stays.
TEST(Warnings, ClippedScalesAreCountedAgain) {
  const auto linear = [](double scale) {
    return QuantizeNearest("w", at::full({1, 4}, scale), {}, {4, -1, false}, at::kHalf);
  };
  QuantizedBlock block;
  block.linears = {linear(1e6)};
  std::map<std::string, double> metrics = {{"clipped.other", 3}};
  const auto count = [&] {
    CheckStorage(block, metrics);
    return metrics.contains("clipped.w") ? metrics.at("clipped.w") : 0;
  };
  EXPECT_EQ(count(), 1);
  block.linears = {linear(1)};
  EXPECT_EQ(count(), 0);
  EXPECT_EQ(metrics.at("clipped.other"), 3);
}

class ReportTest : public ::testing::Test {
 protected:
  // The written files by path, each checked against its hash.
  std::map<std::string, std::string> Write(const Manifest& manifest) {
    for (const char* folder : {"quantry", "dense"}) {
      std::filesystem::create_directories(dir_.File(folder));
    }
    std::map<std::string, std::string> texts;
    for (const HashedFile& file :
         WriteReport(ParseJob(test::FinishedJobJson(dir_.path())), manifest)) {
      const std::string text = ReadFile(dir_.File(file.path), 1 << 20, "TEST");
      EXPECT_EQ(file.bytes, text.size());
      EXPECT_EQ(file.sha256, Sha256OfText(text));
      texts[file.path] = text;
    }
    return texts;
  }

  test::TempDir dir_;
};

TEST_F(ReportTest, WritesReportBlocksPlotAndCards) {
  const auto files = Write(test::FinishedManifest());
  ASSERT_EQ(files.size(), 7u);
  const auto json = nlohmann::json::parse(files.at("report/blocks.json"));
  EXPECT_EQ(json.at("blocks")[1].at("loss_final"), 0.5);
  EXPECT_EQ(json.at("blocks")[1].at("metrics").at("loss_init"), 1.25);
  const std::string& svg = files.at("report/loss.svg");
  EXPECT_EQ(Count(svg, "<circle"), 5);
  EXPECT_NE(svg.find("initial"), std::string::npos);
  EXPECT_NE(files.at("report/report.html").find(svg), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(files.at("report/method.json")),
            test::FinishedJobJson().at("method"));
  EXPECT_EQ(files.count("quantry/README.md") + files.count("dense/README.md"), 2u);
}

TEST_F(ReportTest, WhatDiffersFromRunToRunChangesNoByte) {
  Manifest manifest = test::FinishedManifest();
  const auto first = Write(manifest);
  manifest.run_seconds = 1;
  manifest.stage_seconds.clear();
  manifest.peak_rss_bytes = 5;
  manifest.device = "another cpu";
  manifest.warnings.clear();
  manifest.create_time = "2027-01-31T12:00:00Z";
  for (BlockReport& block : manifest.blocks) block.seconds = 9;
  EXPECT_EQ(Write(manifest), first);
  manifest.threads = 3;
  EXPECT_NE(Write(manifest), first);
}

TEST_F(ReportTest, HoldsWhatTheManifestHolds) {
  Manifest manifest = test::FinishedManifest();
  manifest.base_model = "org/name";
  manifest.preprocessing = test::FinishedRestoration();
  const auto json = ReportJson(ParseJob(test::FinishedJobJson()), manifest);
  EXPECT_EQ(json.at("base_model"), "org/name");
  EXPECT_EQ(json.at("grid").at("group_size"), 64);
  EXPECT_EQ(json.at("quality").at("perplexity").at("quantized"), 5.0);
  EXPECT_EQ(json.at("preprocessing").at("perplexity_first_pass"), 6.0);
  EXPECT_EQ(json.at("outputs").size(), 2u);
  EXPECT_EQ(json.at("inputs")[0].at("sha256"), std::string(64, 'a'));
  EXPECT_EQ(json.dump().find("/secret"), std::string::npos);
}

TEST_F(ReportTest, WithoutCalibrationThereIsNoPlot) {
  Manifest manifest = test::FinishedManifest();
  Write(manifest);
  EXPECT_TRUE(IsRegularFile(dir_.File("report/loss.svg")));
  const double none = std::nan("");
  manifest.blocks = {test::FinishedBlock(0, none, none)};
  EXPECT_EQ(Write(manifest).count("report/loss.svg"), 0u);
  EXPECT_FALSE(IsRegularFile(dir_.File("report/loss.svg")));
}

TEST(BaseModel, TakesHubNamesAndNoPaths) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"_name_or_path": "org/Model-7B_v0.1"})", "org/Model-7B_v0.1"},
      {R"({"_name_or_path": "/home/me/model"})", ""},
      {R"({"_name_or_path": "./model/x"})", ""},
      {R"({"_name_or_path": "a/b/c"})", ""},
      {R"({"_name_or_path": "org/na me"})", ""},
      {R"({"_name_or_path": "org/x\nlicense: mit"})", ""},
      {R"({"_name_or_path": 3})", ""},
      {R"({"_name_or_path": ""})", ""},
      {R"({})", ""},
  };
  for (const auto& [config, name] : cases) EXPECT_EQ(BaseModel(config), name) << config;
}

}  // namespace
}  // namespace quantry::engine
