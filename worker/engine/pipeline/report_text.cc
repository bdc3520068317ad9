#include "worker/engine/pipeline/report_text.h"

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

PerplexityRow Row(const std::string& model, const Json& quality, const char* key, double dense) {
  const auto found = quality.find(key);
  if (found == quality.end()) return {model, "not finite", ""};
  const double value = found->get<double>();
  return {model, ShortNumber(value), dense > 0 ? Printed("× %.4f", value / dense) : ""};
}

std::string GridWords(const Json& grid) {
  const int64_t group = grid.at("group_size").get<int64_t>();
  std::string words = StrCat(", ", grid.at("bits").get<int>(), " bits, ");
  words += group > 0 ? StrCat("group size ", group) : "per channel";
  return grid.at("symmetric").get<bool>() ? words + ", symmetric" : words;
}

// "ptq161 (ptq161-plus)": the method, and its recipe where it says more.
std::string MethodWords(const Json& report) {
  const auto method = report.at("method").get<std::string>();
  const Json& options = report.at("reproduction").at("method").at(method);
  const std::string recipe = options.value("first_pass", options).value("recipe", "");
  return recipe.empty() || recipe == method ? method : StrCat(method, " (", recipe, ")");
}

}  // namespace

std::string ShortNumber(double value) {
  return std::isfinite(value) ? Printed("%.5g", value) : "not finite";
}

std::string ShortPercent(double share) { return Printed("%.4g %%", 100 * share); }

std::string ShortBytes(double bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000) return Printed("%.0f B", bytes);
  size_t unit = 0;
  for (bytes /= 1000; bytes >= 999.95 && unit + 1 < kUnits.size(); ++unit) bytes /= 1000;
  return Printed("%.1f ", bytes) + kUnits[unit];
}

std::string Headline(const Json& report) {
  std::string text = report.contains("base_model") ? report.at("base_model").get<std::string>()
                                                   : report.at("model_type").get<std::string>();
  text += ", " + MethodWords(report);
  if (report.contains("grid")) {
    text += GridWords(report.at("grid"));
  } else {
    text += Printed(", %.3g bits", report.at("bits").at("linears").get<double>());
  }
  const int activations = report.at("activation_bits").get<int>();
  if (activations < 16) text += StrCat(", activations of ", activations, " bits");
  return report.contains("preprocessing") ? text + ", after preprocessing" : text;
}

std::vector<PerplexityRow> PerplexityRows(const Json& report) {
  if (!report.contains("quality")) return {};
  const Json& perplexity = report.at("quality").at("perplexity");
  const double dense = perplexity.value("dense", 0.0);
  std::vector<PerplexityRow> rows = {Row("dense, as given", perplexity, "dense", 0)};
  const Json none = Json::object();
  const Json& before = report.contains("preprocessing") ? report.at("preprocessing") : none;
  if (before.contains("perplexity_restored")) {
    rows.push_back(Row("quantized by the first pass", before, "perplexity_first_pass", dense));
    rows.push_back(Row("dense, restored by preprocessing", before, "perplexity_restored", dense));
  }
  const bool apart = report.contains("preprocessing");
  rows.push_back(
      Row(apart ? "quantized after preprocessing" : "quantized", perplexity, "quantized", dense));
  return rows;
}

}  // namespace quantry::engine
