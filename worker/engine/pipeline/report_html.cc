#include "worker/engine/pipeline/report_html.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "common/markup.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/pipeline/report_text.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;

constexpr char kHead[] = R"(<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --line: #d5d9de; --soft: #5b6570; --card: #f4f6f8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --line: #3a414a; --soft: #9aa5b1; --card: #20252b; --bad: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; }
h2 { border-bottom: 1px solid var(--line); font-size: 1.15rem; margin: 2rem 0 .75rem; }
p, dd { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tiles div { background: var(--card); border-radius: .5rem; flex: 1 1 10.5rem; padding: .6rem .9rem; }
.tiles b { display: block; font-size: 1.2rem; }
.tiles span { color: var(--soft); font-size: .85rem; }
.wide { margin: .5rem 0 1rem; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem 1.2rem .3rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; }
td.long { max-width: 30rem; min-width: 14rem; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: var(--card); border-radius: .5rem; overflow-x: auto; padding: .75rem; white-space: pre-wrap; }
svg { background: #fff; border-radius: .5rem; height: auto; max-width: 100%; }
.bad { color: var(--bad); font-weight: 600; }
</style>
)";

std::string Cell(const char* tag, const std::string& css, const std::string& html) {
  return StrCat("<", tag, css.empty() ? "" : " class=\"" + css + "\"", ">", html, "</", tag, ">");
}

// Cells are text; `css` holds one class a column ("" = none). Code columns: "code".
std::string Table(const std::vector<std::string>& head, const std::vector<std::string>& css,
                  const Rows& rows) {
  std::string html = "<div class=\"wide\"><table>\n<tr>";
  for (size_t i = 0; i < head.size(); ++i) html += Cell("th", css[i], EscapeMarkup(head[i]));
  html += "</tr>\n";
  for (const auto& row : rows) {
    html += "<tr>";
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string text = EscapeMarkup(row[i]);
      html += css[i] == "code" ? Cell("td", "", Cell("code", "", text)) : Cell("td", css[i], text);
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

std::string Paragraph(const std::string& text) { return Cell("p", "", EscapeMarkup(text)) + "\n"; }

std::string Tile(const std::string& value, const std::string& label) {
  return StrCat("<div><b>", EscapeMarkup(value), "</b><span>", EscapeMarkup(label),
                "</span></div>\n");
}

std::string Tiles(const Json& report) {
  std::string html = "<div class=\"tiles\">\n";
  const auto rows = PerplexityRows(report);
  if (!rows.empty()) {
    html += Tile(rows.front().perplexity + " → " + rows.back().perplexity,
                 StrCat("perplexity, dense → ", rows.back().model));
    html += Tile(rows.back().ratio, "of the dense model's perplexity");
    if (report.at("quality").contains("top1_agreement")) {
      html += Tile(ShortPercent(report.at("quality").at("top1_agreement").get<double>()),
                   "same most likely token");
    }
  }
  const Json& bits = report.at("bits");
  html += Tile(ShortNumber(bits.at("linears").get<double>()), "bits a weight, quantized linears");
  html += Tile(ShortNumber(bits.at("file").get<double>()), "bits a parameter, whole file");
  return html + "</div>\n";
}

std::string Gate(const Json& gate) {
  std::vector<std::string> limits;
  if (gate.contains("max_perplexity_ratio")) {
    limits.push_back("quantized / dense ≤ " +
                     ShortNumber(gate.at("max_perplexity_ratio").get<double>()));
  }
  if (gate.contains("max_perplexity_increase")) {
    limits.push_back("quantized − dense ≤ " +
                     ShortNumber(gate.at("max_perplexity_increase").get<double>()));
  }
  if (limits.empty()) return "";
  const bool failed = gate.at("failed").get<bool>();
  return StrCat("<p", failed ? " class=\"bad\"" : "", ">Quality gate (", Join(limits),
                "): ", failed ? "FAILED" : "passed", "</p>\n");
}

std::string Quality(const Json& report) {
  std::string html = "<section id=\"quality\">\n<h2>Quality</h2>\n";
  if (!report.contains("quality")) {
    return html + Paragraph("Not measured: the job had no evaluation text.") + "</section>\n";
  }
  Rows rows;
  for (const PerplexityRow& row : PerplexityRows(report)) {
    rows.push_back({row.model, row.perplexity, row.ratio});
  }
  html += Table({"model", "perplexity", "to dense"}, {"", "n", "n"}, rows);
  const Json& quality = report.at("quality");
  const Json& perplexity = quality.at("perplexity");
  html += Paragraph(StrCat("KL divergence to the dense model ",
                           quality.contains("kl_divergence")
                               ? ShortNumber(quality.at("kl_divergence").get<double>()) + " nats"
                               : "not finite",
                           " a token; ", perplexity.at("tokens").get<int64_t>(), " tokens in ",
                           perplexity.at("windows").get<int64_t>(), " windows of ",
                           perplexity.at("sequence_length").get<int64_t>(), "."));
  if (report.contains("preprocessing")) {
    html += Paragraph(
        "Preprocessing changed the model before it was quantized: what preprocessing and what "
        "quantization did are told apart above.");
  }
  return html + Gate(report.at("quality_gate")) + "</section>\n";
}

std::string NumberOf(const Json& object, const std::string& key) {
  return object.contains(key) ? ShortNumber(object.at(key).get<double>()) : "–";
}

std::string Blocks(const Json& report, const std::string& plot_svg) {
  std::string html = "<section id=\"blocks\">\n<h2>Blocks</h2>\n" + plot_svg +
                     Paragraph("Loss: " + report.at("loss_unit").get<std::string>() + ".");
  std::set<std::string> metrics;
  for (const Json& block : report.at("blocks")) {
    for (const auto& [name, value] : block.at("metrics").items()) metrics.insert(name);
  }
  std::vector<std::string> head = {"block", "round to nearest", "final", "final / nearest"};
  head.insert(head.end(), metrics.begin(), metrics.end());
  Rows rows;
  for (const Json& block : report.at("blocks")) {
    const double rtn = block.value("loss_rtn", 0.0);
    std::vector<std::string> row = {std::to_string(block.at("index").get<int>()),
                                    NumberOf(block, "loss_rtn"), NumberOf(block, "loss_final"),
                                    rtn > 0 && block.contains("loss_final")
                                        ? ShortNumber(block.at("loss_final").get<double>() / rtn)
                                        : "–"};
    for (const std::string& name : metrics) row.push_back(NumberOf(block.at("metrics"), name));
    rows.push_back(std::move(row));
  }
  return html + Table(head, std::vector<std::string>(head.size(), "n"), rows) + "</section>\n";
}

std::string Outputs(const Json& report) {
  Rows rows;
  for (const Json& output : report.at("outputs")) {
    rows.push_back({output.at("format").get<std::string>(),
                    ShortBytes(output.at("bytes").get<double>()),
                    ShortNumber(output.at("bits_per_weight").get<double>()),
                    output.at("verified").get<bool>() ? "yes" : "no",
                    output.at("compatibility").get<std::string>()});
  }
  const Json& bits = report.at("bits");
  return "<section id=\"outputs\">\n<h2>Outputs</h2>\n" +
         Table({"format", "weights", "bits a weight", "re-read and equal", "who loads it"},
               {"code", "n", "n", "", "long"}, rows) +
         Paragraph(StrCat("The source's weights take ",
                          ShortBytes(bits.at("dense_bytes").get<double>()), " for ",
                          bits.at("parameters").get<int64_t>(), " parameters, ",
                          bits.at("linear_weights").get<int64_t>(),
                          " of them in quantized linears. Bits of the linears count codes, signs "
                          "and all that belongs to them, as the method made them; bits of the file "
                          "count the first output's weight files over all parameters.")) +
         "</section>\n";
}

std::string Preprocessing(const Json& report) {
  if (!report.contains("preprocessing")) return "";
  const Json& done = report.at("preprocessing");
  return "<section id=\"preprocessing\">\n<h2>Preprocessing</h2>\n" +
         Table({"updates", "loss, first tenth", "loss, last tenth", "relative change"},
               {"n", "n", "n", "n"},
               {{std::to_string(done.at("updates").get<int64_t>()), NumberOf(done, "loss_first"),
                 NumberOf(done, "loss_last"), NumberOf(done, "relative_change")}}) +
         "</section>\n";
}

std::string HowToRepeat(const Json& report) {
  const Json& again = report.at("reproduction");
  Rows inputs;
  for (const Json& file : report.at("inputs")) {
    inputs.push_back({file.at("path").get<std::string>(),
                      std::to_string(file.at("size_bytes").get<uint64_t>()),
                      file.at("sha256").get<std::string>()});
  }
  Rows versions;
  for (const auto& [name, version] : report.at("versions").items()) {
    versions.push_back({name, version.get<std::string>()});
  }
  const std::string html = "<section id=\"reproduction\">\n<h2>The same again</h2>\n" +
                           Cell("pre", "", EscapeMarkup(again.at("command").get<std::string>())) +
                           "\n" + Paragraph("METHOD_CONFIG is report/method.json:") +
                           Cell("pre", "", EscapeMarkup(again.at("method").dump(2))) + "\n";
  return html + Paragraph("Inputs, and the versions that made it:") +
         Table({"input", "bytes", "sha256"}, {"code", "n", "code"}, inputs) +
         Table({"part", "version"}, {"", "code"}, versions) + "</section>\n";
}

std::string Measured() {
  return std::string("<section id=\"measured\">\n<h2>Times and memory</h2>\n") + kMeasuredBegin +
         "<p>They differ from run to run, everything else on this page does not: they are in "
         "<code>manifest.json</code>, and <code>quantry report DIR --html FILE</code> puts them "
         "here.</p>\n" +
         kMeasuredEnd + "</section>\n";
}

}  // namespace

std::string ReportHtml(const Json& report, const std::string& plot_svg) {
  const std::string title = EscapeMarkup(Headline(report));
  return StrCat(kHead, "<title>", title, "</title>\n</head>\n<body>\n<h1>", title, "</h1>\n",
                Tiles(report), Quality(report), Blocks(report, plot_svg), Outputs(report),
                Preprocessing(report), Measured(), HowToRepeat(report), "</body>\n</html>\n");
}

}  // namespace quantry::engine
