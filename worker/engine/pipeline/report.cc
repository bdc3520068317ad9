#include "worker/engine/pipeline/report.h"

#include <cctype>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/line_plot.h"
#include "worker/engine/pipeline/model_card.h"
#include "worker/engine/pipeline/report_html.h"
#include "worker/engine/pipeline/reproduction.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kReportSchema[] = "quantry.job-report.v1";
constexpr char kBlocksSchema[] = "quantry.report.v1";
constexpr char kInitialLoss[] = "loss_init";
constexpr char kUnit[] = "mean over tokens of the summed squared output error of the block";
constexpr size_t kLongestHubName = 96;

Json BlocksJson(const Json& report) {
  return {{"schema", kBlocksSchema},
          {"method", report.at("method")},
          {"loss_unit", report.at("loss_unit")},
          {"blocks", report.at("blocks")}};
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

Json GateJson(const QualityGate& gate, bool failed) {
  Json json = {{"failed", failed}};
  if (gate.max_perplexity_ratio > 0) json["max_perplexity_ratio"] = gate.max_perplexity_ratio;
  if (gate.max_perplexity_increase > 0) {
    json["max_perplexity_increase"] = gate.max_perplexity_increase;
  }
  return json;
}

bool IsHubWord(std::string_view word) {
  if (word.empty() || word.front() == '.' || word.front() == '-') return false;
  for (const char c : word) {
    const bool fits =
        std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
    if (!fits) return false;
  }
  return true;
}

std::string Text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string BaseModel(const std::string& config_json) {
  const auto config = nlohmann::json::parse(config_json, nullptr, false);
  if (!config.is_object()) return "";
  const auto found = config.find("_name_or_path");
  if (found == config.end() || !found->is_string()) return "";
  const auto name = found->get<std::string>();
  const size_t slash = name.find('/');
  if (slash == std::string::npos || name.size() > kLongestHubName) return "";
  const std::string_view view(name);
  return IsHubWord(view.substr(0, slash)) && IsHubWord(view.substr(slash + 1)) ? name : "";
}

Json ReportJson(const Job& job, const Manifest& manifest) {
  const Json all = ManifestJson(job, manifest);
  Json report = {{"schema", kReportSchema}};
  const auto take = [&](const char* key) {
    if (all.contains(key)) report[key] = all.at(key);
  };
  if (!manifest.base_model.empty()) report["base_model"] = manifest.base_model;
  for (const char* key : {"model_type", "method"}) take(key);
  report[job.method_row->weights == WeightKind::kGrid ? "grid" : "reference_grid"] = {
      {"bits", job.grid.bits},
      {"group_size", job.grid.group_size},
      {"symmetric", job.grid.symmetric}};
  if (job.rotation.enabled) report["rotation"] = {{"online", job.rotation.online}};
  for (const char* key : {"activation_bits", "quality", "preprocessing", "bits", "outputs"}) {
    take(key);
  }
  report["quality_gate"] = GateJson(job.quality_gate, manifest.quality_gate_failed);
  report["loss_unit"] = kUnit;
  take("blocks");
  for (Json& block : report["blocks"]) block.erase("seconds");
  for (const char* key : {"seed", "inputs", "versions"}) take(key);
  report["device_type"] = manifest.device_type;
  take("compute_dtype");
  report["threads"] = manifest.threads;
  report["reproduction"] =
      Reproduction(job, {manifest.threads, manifest.device_type, manifest.compute});
  return report;
}

std::vector<HashedFile> WriteReport(const Job& job, const Manifest& manifest) {
  const std::string dir = job.output_dir + "/report";
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  std::filesystem::remove(dir + "/loss.svg", error);  // of an earlier run
  std::vector<HashedFile> files;
  const auto write = [&](const std::string& path, const std::string& text) {
    WriteFileAtomically(job.output_dir + "/" + path, text);
    files.push_back({path, text.size(), Sha256OfText(text)});
  };
  const Json report = ReportJson(job, manifest);
  const std::string plot = LinePlotSvg(LossPlot(job.method_row->name, manifest.blocks));
  write("report/report.json", Text(report));
  write("report/report.html", ReportHtml(report, plot));
  write("report/blocks.json", Text(BlocksJson(report)));
  write("report/method.json", Text(report.at("reproduction").at("method")));
  if (!plot.empty()) write("report/loss.svg", plot);
  for (const Json& output : report.at("outputs")) {
    const auto folder = output.at("path").get<std::string>();
    write(folder + "/" + CardName(job.output_dir + "/" + folder), ModelCard(report, output));
  }
  return files;
}

}  // namespace quantry::engine
