#include "worker/engine/pipeline/model_card.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "worker/engine/base/file.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/pipeline/report_text.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

// The last line of every card; CardName knows a card by it.
constexpr char kSignature[] = "<!-- card written by quantry -->\n";
constexpr uint64_t kMaxCardBytes = uint64_t{16} << 20;

// A YAML scalar: JSON's strings are YAML's.
std::string Quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
}

// Each once: a method and a format may have the same name.
std::vector<std::string> Tags(const Json& report, const Json& output) {
  std::vector<std::string> tags;
  const auto add = [&](const std::string& tag) {
    if (std::find(tags.begin(), tags.end(), tag) == tags.end()) tags.push_back(tag);
  };
  const auto format = output.at("format").get<std::string>();
  add("quantry");
  add(report.at("method").get<std::string>());
  add(format);
  if (format == "int4-carrier") add("compressed-tensors");
  if (format == "gptq-v1") add("gptq");
  if (report.contains("grid") && format != "dense") {
    add(StrCat(report.at("grid").at("bits").get<int>(), "-bit"));
  }
  return tags;
}

// Who loads it as it is meant: no other engine rotates inputs.
std::string LibraryName(const Json& report, const Json& output) {
  const bool online = report.contains("rotation") && report.at("rotation").at("online").get<bool>();
  return online || output.at("format") == "quantry" ? "quantry" : "transformers";
}

std::string FrontMatter(const Json& report, const Json& output) {
  std::string yaml = "---\n";
  if (report.contains("base_model")) {
    yaml += "base_model: " + Quoted(report.at("base_model").get<std::string>()) + "\n";
    yaml += "base_model_relation: quantized\n";
  }
  yaml += "library_name: " + LibraryName(report, output) + "\n";
  yaml += "pipeline_tag: text-generation\ntags:\n";
  for (const std::string& tag : Tags(report, output)) yaml += "- " + Quoted(tag) + "\n";
  return yaml + "---\n";
}

std::string QualityText(const Json& report) {
  const auto rows = PerplexityRows(report);
  if (rows.empty()) return "Quality was not measured: the job had no evaluation text.\n";
  std::string text = "| model | perplexity | to dense |\n|---|---:|---:|\n";
  for (const PerplexityRow& row : rows) {
    text += StrCat("| ", row.model, " | ", row.perplexity, " | ", row.ratio, " |\n");
  }
  const Json& quality = report.at("quality");
  const Json& perplexity = quality.at("perplexity");
  text += StrCat("\nMeasured on ", perplexity.at("tokens").get<int64_t>(), " tokens in ",
                 perplexity.at("windows").get<int64_t>(), " windows of ",
                 perplexity.at("sequence_length").get<int64_t>());
  if (quality.contains("kl_divergence")) {
    text += StrCat("; KL divergence to the dense model ",
                   ShortNumber(quality.at("kl_divergence").get<double>()), " nats a token");
  }
  if (quality.contains("top1_agreement")) {
    text += StrCat("; same most likely token at ",
                   ShortPercent(quality.at("top1_agreement").get<double>()));
  }
  text += ".\n";
  if (report.at("quality_gate").at("failed").get<bool>()) {
    text += "\n**The job's quality gate FAILED.**\n";
  }
  return text;
}

std::string InputsText(const Json& report) {
  std::string text = "| input | sha256 |\n|---|---|\n";
  for (const Json& file : report.at("inputs")) {
    // A name is somebody else's text: no bar, backtick or line end leaves the cell.
    std::string name = Printable(file.at("path").get<std::string>());
    for (char& c : name) c = c == '|' || c == '`' ? '_' : c;
    text += StrCat("| `", name, "` | `", file.at("sha256").get<std::string>(), "` |\n");
  }
  return text;
}

}  // namespace

std::string ModelCard(const Json& report, const Json& output) {
  const Json& again = report.at("reproduction");
  return StrCat(FrontMatter(report, output), "\n# ", Headline(report), "\n\nWeights in the `",
                output.at("format").get<std::string>(),
                "` format: ", ShortBytes(output.at("bytes").get<double>()), ", ",
                ShortNumber(output.at("bits_per_weight").get<double>()),
                " bits a weight of the quantized linears (",
                ShortNumber(report.at("bits").at("linears").get<double>()),
                " as the method made them). The source's weights take ",
                ShortBytes(report.at("bits").at("dense_bytes").get<double>()),
                ".\n\n## Quality\n\n", QualityText(report), "\n## Loading it\n\n",
                output.at("compatibility").get<std::string>(), "\n\n## How it was made\n\n```sh\n",
                again.at("command").get<std::string>(), "\n```\n\nwith METHOD_CONFIG\n\n```json\n",
                again.at("method").dump(2, ' ', true), "\n```\n\n", InputsText(report),
                "\nMade by quantry ", report.at("versions").at("engine").get<std::string>(),
                " with libtorch ", report.at("versions").at("libtorch").get<std::string>(),
                ". The base model's licence applies.\n\n", kSignature);
}

std::string CardName(const std::string& folder) {
  const std::string usual = "README.md";
  const std::string path = folder + "/" + usual;
  if (!IsRegularFile(path)) return usual;
  const std::string text = ReadFile(path, kMaxCardBytes, "INVALID_SPEC");
  return text.find(kSignature) == std::string::npos ? "README.quantry.md" : usual;
}

}  // namespace quantry::engine
