#include "worker/engine/pipeline/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/line_plot.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

int Count(const std::string& text, const std::string& word) {
  int count = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++count;
  return count;
}

BlockReport Report(int index, double rtn, double final) {
  BlockReport report;
  report.index = index;
  report.loss_rtn = rtn;
  report.loss_final = final;
  report.seconds = 1.5;
  return report;
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

TEST(Report, WritesLossesWithoutTimes) {
  const test::TempDir dir;
  std::vector<BlockReport> blocks = {Report(0, 2, 1), Report(1, 3, 0.5)};
  blocks[1].metrics["loss_init"] = 1.25;
  const std::vector<HashedFile> files = WriteReport(dir.path(), "awq", blocks);
  ASSERT_EQ(files.size(), 2u);
  for (const HashedFile& file : files) {
    const std::string text = ReadFile(dir.File(file.path), 1 << 20, "TEST");
    EXPECT_EQ(file.bytes, text.size());
    EXPECT_EQ(file.sha256, Sha256OfText(text));
  }
  const auto json = nlohmann::json::parse(ReadFile(dir.File(files[0].path), 1 << 20, "TEST"));
  EXPECT_EQ(json.at("blocks")[1].at("loss_final"), 0.5);
  EXPECT_EQ(json.at("blocks")[1].at("metrics").at("loss_init"), 1.25);
  EXPECT_FALSE(json.at("blocks")[0].contains("seconds"));
  const std::string svg = ReadFile(dir.File(files[1].path), 1 << 20, "TEST");
  EXPECT_EQ(Count(svg, "<circle"), 5);
  EXPECT_NE(svg.find("initial"), std::string::npos);
}

TEST(Report, WithoutCalibrationThereIsNoPlot) {
  const test::TempDir dir;
  WriteReport(dir.path(), "awq", {Report(0, 2, 1)});
  const double none = std::nan("");
  EXPECT_EQ(WriteReport(dir.path(), "rtn", {Report(0, none, none)}).size(), 1u);
  EXPECT_FALSE(IsRegularFile(dir.File("report/loss.svg")));
}

}  // namespace
}  // namespace quantry::engine
