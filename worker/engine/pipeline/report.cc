#include "worker/engine/pipeline/report.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/line_plot.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kSchema[] = "quantry.report.v1";
constexpr char kInitialLoss[] = "loss_init";
constexpr char kUnit[] = "mean over tokens of the summed squared output error of the block";

Json BlocksJson(const std::string& method, const std::vector<BlockReport>& blocks) {
  Json list = Json::array();
  for (const BlockReport& block : blocks) {
    Json row = ToJson(block);
    row.erase("seconds");
    list.push_back(std::move(row));
  }
  return WithoutNulls(
      {{"schema", kSchema}, {"method", method}, {"loss_unit", kUnit}, {"blocks", list}});
}

LinePlot LossPlot(const std::string& method, const std::vector<BlockReport>& blocks) {
  LinePlot plot = {
      "Output error per block, method " + method,
      "block",
      "loss",
      {{"round to nearest", "#b0b0b0", {}}, {"initial", "#e69f00", {}}, {"final", "#0072b2", {}}}};
  for (const BlockReport& block : blocks) {
    const auto initial = block.metrics.find(kInitialLoss);
    plot.series[0].values.push_back(block.loss_rtn);
    plot.series[1].values.push_back(initial == block.metrics.end()
                                        ? std::numeric_limits<double>::quiet_NaN()
                                        : initial->second);
    plot.series[2].values.push_back(block.loss_final);
  }
  return plot;
}

}  // namespace

std::vector<HashedFile> WriteReport(const std::string& output_dir, const std::string& method,
                                    const std::vector<BlockReport>& blocks) {
  const std::string dir = output_dir + "/report";
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  std::filesystem::remove(dir + "/loss.svg", error);  // of an earlier run
  std::vector<HashedFile> files;
  const auto write = [&](const std::string& name, const std::string& text) {
    WriteFileAtomically(dir + "/" + name, text);
    files.push_back({"report/" + name, text.size(), Sha256OfText(text)});
  };
  write("blocks.json", BlocksJson(method, blocks).dump(2) + "\n");
  const std::string plot = LinePlotSvg(LossPlot(method, blocks));
  if (!plot.empty()) write("loss.svg", plot);
  return files;
}

}  // namespace quantry::engine
