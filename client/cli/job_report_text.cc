#include <algorithm>
#include <map>

#include "client/cli/format.h"
#include "client/cli/job_report.h"
#include "client/cli/job_text.h"
#include "client/cli/progress.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

using FieldList = std::vector<std::pair<std::string, std::string>>;
using Rows = std::vector<std::vector<std::string>>;

// A manifest's figures as those of the job that made it.
v1::JobResult ResultOf(const v1::Manifest& manifest) {
  v1::JobResult result;
  if (manifest.has_quality()) *result.mutable_quality() = manifest.quality();
  *result.mutable_bits() = manifest.bits();
  *result.mutable_outputs() = manifest.outputs();
  *result.mutable_timing() = manifest.timing();
  result.set_peak_rss_bytes(manifest.peak_rss_bytes());
  result.set_quality_gate_failed(manifest.quality_gate_failed());
  return result;
}

// Quality with and without preprocessing, never mixed.
void AddPreprocessing(const v1::Manifest& manifest, FieldList& fields) {
  if (!manifest.has_preprocessing()) return;
  const v1::PreprocessingReport& done = manifest.preprocessing();
  std::string text = Cat(done.updates(), " updates, loss ", Number(done.loss_first(), 4), " -> ",
                         Number(done.loss_last(), 4));
  if (done.perplexity_restored() > 0) {
    text += Cat("; perplexity of the first pass ", Number(done.perplexity_first_pass()),
                ", of the restored dense model ", Number(done.perplexity_restored()));
  }
  fields.emplace_back("preprocessing", text);
}

std::string StagesText(const v1::Timing& timing) {
  std::string text;
  for (const auto& [stage, seconds] :
       std::map<std::string, double>(timing.stages_s().begin(), timing.stages_s().end())) {
    constexpr std::string_view kPrefix = "STAGE_";
    std::string word = stage.rfind(kPrefix, 0) == 0 ? stage.substr(kPrefix.size()) : stage;
    std::transform(word.begin(), word.end(), word.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    text += Cat(text.empty() ? "" : ", ", Plain(word), " ", Seconds(seconds));
  }
  return text;
}

std::string Ratio(double a, double b) { return a > 0 && b > 0 ? Number(b / a, 4) : ""; }

std::string BlockTable(const v1::Manifest& manifest) {
  Rows rows = {{"BLOCK", "NEAREST", "FINAL", "FINAL/NEAREST", "TIME"}};
  for (const v1::BlockReport& block : manifest.blocks()) {
    const bool measured = IsMeasured(block);
    rows.push_back({Cat(block.index()), measured ? Number(block.loss_rtn(), 4) : "",
                    measured ? Number(block.loss_final(), 4) : "",
                    measured ? Ratio(block.loss_rtn(), block.loss_final()) : "",
                    Seconds(block.seconds())});
  }
  return Table(rows);
}

// What tells two jobs apart so that their figures mean different things.
std::vector<std::string> Differences(const v1::Manifest& a, const v1::Manifest& b) {
  const auto hashes = [](const v1::Manifest& manifest, const std::string& role) {
    std::vector<std::string> found;
    for (const v1::ArtifactFile& file : manifest.inputs()) {
      if (file.path().rfind(role, 0) == 0) found.push_back(file.sha256());
    }
    std::sort(found.begin(), found.end());
    return found;
  };
  std::vector<std::string> differences;
  for (const char* role : {"model", "calibration", "evaluation", "preprocessing"}) {
    if (hashes(a, Cat(role, "/")) != hashes(b, Cat(role, "/"))) {
      differences.push_back(Cat(role, " inputs"));
    }
  }
  const v1::Perplexity& pa = a.quality().perplexity();
  const v1::Perplexity& pb = b.quality().perplexity();
  if (pa.sequence_length() != pb.sequence_length() || pa.windows() != pb.windows()) {
    differences.emplace_back("evaluation windows");
  }
  if (a.has_preprocessing() != b.has_preprocessing()) differences.emplace_back("preprocessing");
  if (a.activation_bits() != b.activation_bits()) differences.emplace_back("activation bits");
  if (a.compute_dtype() != b.compute_dtype()) differences.emplace_back("type of products");
  return differences;
}

// One figure both jobs may have.
struct Figure {
  const char* key;
  const char* label;
  double (*value)(const v1::Manifest&);  // 0 = has none
  std::string (*text)(double);
};

std::string Plain5(double value) { return Number(value); }
std::string BytesText(double value) { return Bytes(static_cast<int64_t>(value)); }
std::string PercentText(double value) { return Cat(Number(100 * value, 4), "%"); }

const std::vector<Figure>& Figures() {
  using M = const v1::Manifest&;
  static const std::vector<Figure> figures = {
      {"perplexity_dense", "perplexity, dense",
       [](M m) { return m.quality().perplexity().dense(); }, Plain5},
      {"perplexity_quantized", "perplexity, quantized",
       [](M m) { return m.quality().perplexity().quantized(); }, Plain5},
      {"kl_divergence", "KL divergence, nats", [](M m) { return m.quality().kl_divergence(); },
       Plain5},
      {"top1_agreement", "same top token", [](M m) { return m.quality().top1_agreement(); },
       PercentText},
      {"bits_linears", "bits, quantized linears", [](M m) { return m.bits().linears(); }, Plain5},
      {"bits_file", "bits, whole file", [](M m) { return m.bits().file(); }, Plain5},
      {"run_s", "time", [](M m) { return m.timing().run_s(); },
       [](double s) { return Seconds(s); }},
      {"peak_rss_bytes", "memory", [](M m) { return static_cast<double>(m.peak_rss_bytes()); },
       BytesText},
  };
  return figures;
}

int64_t OutputBytes(const v1::Manifest& manifest, const std::string& format) {
  for (const v1::OutputSummary& output : manifest.outputs()) {
    if (output.format() == format) return output.bytes();
  }
  return 0;
}

// Formats of either, in their order.
std::vector<std::string> Formats(const v1::Manifest& a, const v1::Manifest& b) {
  std::vector<std::string> formats;
  for (const v1::Manifest* manifest : {&a, &b}) {
    for (const v1::OutputSummary& output : manifest->outputs()) {
      if (std::find(formats.begin(), formats.end(), output.format()) == formats.end()) {
        formats.push_back(output.format());
      }
    }
  }
  return formats;
}

std::map<int, double> Losses(const v1::Manifest& manifest) {
  std::map<int, double> losses;
  for (const v1::BlockReport& block : manifest.blocks()) {
    losses[block.index()] = block.loss_final();
  }
  return losses;
}

Json SideJson(const JobReport& side) {
  const v1::Manifest& m = side.manifest;
  Json json = {{"source", side.source},
               {"job", m.job()},
               {"method", m.method()},
               {"model_type", m.model_type()},
               {"preprocessing", m.has_preprocessing()},
               {"quality_gate_failed", m.quality_gate_failed()}};
  if (!m.compute_dtype().empty()) json["compute_dtype"] = m.compute_dtype();
  for (const Figure& figure : Figures()) {
    if (const double value = figure.value(m); value > 0) json[figure.key] = value;
  }
  Json outputs = Json::object();
  for (const v1::OutputSummary& output : m.outputs()) {
    outputs[output.format()] = {{"bytes", output.bytes()},
                                {"bits_per_weight", output.bits_per_weight()}};
  }
  json["outputs"] = std::move(outputs);
  return json;
}

// The command that repeats the job; "" when the artifact tells none.
std::string CommandOf(const JobReport& report) {
  if (!report.report.is_object()) return "";
  const Json again = report.report.value("reproduction", Json::object());
  if (!again.is_object()) return "";
  const Json command = again.value("command", Json());
  return command.is_string() ? Plain(command.get<std::string>()) : "";
}

std::string OrDash(double value, std::string (*text)(double)) {
  return value > 0 ? text(value) : "-";
}

}  // namespace

std::string JobReportText(const JobReport& report) {
  const v1::Manifest& manifest = report.manifest;
  FieldList fields;
  if (!manifest.job().empty()) fields.emplace_back("job", Plain(manifest.job()));
  fields.emplace_back("method",
                      Cat(Plain(manifest.method()), " on ", Plain(manifest.model_type())));
  for (auto& field : ResultFields(ResultOf(manifest))) fields.push_back(std::move(field));
  AddPreprocessing(manifest, fields);
  if (const std::string stages = StagesText(manifest.timing()); !stages.empty()) {
    fields.emplace_back("stages", stages);
  }
  fields.emplace_back("device", Plain(manifest.device()));
  if (!manifest.compute_dtype().empty()) {
    fields.emplace_back("products", Cat("of training steps in ", Plain(manifest.compute_dtype())));
  }
  for (const std::string& warning : manifest.warnings()) {
    fields.emplace_back("warning", Plain(warning));
  }
  std::string text = Cat(Plain(report.source), "\n", Fields(fields), "\n", BlockTable(manifest));
  const std::string command = CommandOf(report);
  // By itself and unbroken, to be copied.
  return command.empty() ? text : Cat(text, "\nthe same again:\n  ", command, "\n");
}

Json JobReportJson(const JobReport& report) {
  Json json = ManifestJson(report.manifest);
  if (report.report.is_object() && report.report.contains("reproduction")) {
    json["reproduction"] = report.report["reproduction"];
  }
  return json;
}

std::string ComparisonText(const JobReport& a, const JobReport& b) {
  const v1::Manifest& ma = a.manifest;
  const v1::Manifest& mb = b.manifest;
  Rows rows = {{"", Plain(a.source), Plain(b.source), "B/A"},
               {"method", Plain(ma.method()), Plain(mb.method()), ""}};
  for (const Figure& figure : Figures()) {
    const double va = figure.value(ma);
    const double vb = figure.value(mb);
    if (va <= 0 && vb <= 0) continue;
    rows.push_back({figure.label, OrDash(va, figure.text), OrDash(vb, figure.text), Ratio(va, vb)});
  }
  for (const std::string& format : Formats(ma, mb)) {
    const auto va = static_cast<double>(OutputBytes(ma, format));
    const auto vb = static_cast<double>(OutputBytes(mb, format));
    rows.push_back({Cat("weights, ", Plain(format)), OrDash(va, BytesText), OrDash(vb, BytesText),
                    Ratio(va, vb)});
  }
  const std::map<int, double> la = Losses(ma);
  std::map<int, double> lb = Losses(mb);
  for (const auto& [index, loss] : la) {
    const double other = lb[index];
    if (loss <= 0 && other <= 0) continue;
    rows.push_back({Cat("loss of block ", index), OrDash(loss, Plain5), OrDash(other, Plain5),
                    Ratio(loss, other)});
  }
  std::string text = Table(rows);
  for (const std::string& difference : Differences(ma, mb)) {
    text += Cat("note: the jobs differ in ", difference, "\n");
  }
  return text;
}

Json ComparisonJson(const JobReport& a, const JobReport& b) {
  Json ratios = Json::object();
  for (const Figure& figure : Figures()) {
    const double va = figure.value(a.manifest);
    const double vb = figure.value(b.manifest);
    if (va > 0 && vb > 0) ratios[figure.key] = vb / va;
  }
  Json blocks = Json::array();
  const std::map<int, double> la = Losses(a.manifest);
  const std::map<int, double> lb = Losses(b.manifest);
  for (const auto& [index, loss] : la) {
    const auto other = lb.find(index);
    if (other == lb.end()) continue;
    Json row = {{"index", index}, {"a", loss}, {"b", other->second}};
    if (loss > 0 && other->second > 0) row["ratio"] = other->second / loss;
    blocks.push_back(std::move(row));
  }
  return {{"a", SideJson(a)},
          {"b", SideJson(b)},
          {"ratios", std::move(ratios)},
          {"blocks", std::move(blocks)},
          {"differences", Differences(a.manifest, b.manifest)}};
}

}  // namespace quantry::cli
