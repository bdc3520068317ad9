#include "worker/engine/pipeline/manifest.h"

#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/versions.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kManifestSchema[] = "quantry.manifest.v1";

Json ToJson(const OutputSummary& output) {
  return {{"format", output.format},
          {"path", output.path},
          {"bytes", output.bytes},
          {"bits_per_weight", output.bits_per_weight},
          {"theoretical_bytes", output.theoretical_bytes},
          {"compatibility", output.compatibility},
          {"verified", output.verified}};
}

Json ToJson(const BitAccounting& bits) {
  return {{"linears", bits.linears},
          {"file", bits.file},
          {"linear_weights", bits.linear_weights},
          {"parameters", bits.parameters},
          {"theoretical_bytes", bits.theoretical_bytes},
          {"dense_bytes", bits.dense_bytes}};
}

template <typename T>
Json List(const std::vector<T>& items) {
  Json list = Json::array();
  for (const T& item : items) list.push_back(ToJson(item));
  return list;
}

Json QualityJson(const EvaluationResult& quality, int64_t length) {
  const Json perplexity = {{"dense", Finite(quality.perplexity_dense)},
                           {"quantized", Finite(quality.perplexity_quantized)},
                           {"tokens", quality.tokens},
                           {"sequence_length", length},
                           {"windows", quality.windows}};
  return {{"perplexity", perplexity},
          {"kl_divergence", Finite(quality.kl_divergence)},
          {"top1_agreement", Finite(quality.top1_agreement)}};
}

Json TimingJson(const Manifest& manifest) {
  Json blocks = Json::array();
  for (const BlockReport& block : manifest.blocks) blocks.push_back(block.seconds);
  return {
      {"run_s", manifest.run_seconds}, {"blocks_s", blocks}, {"stages_s", manifest.stage_seconds}};
}

Json ToJson(const RestorationResult& result) {
  Json json = {{"updates", result.updates},
               {"loss_first", Finite(result.loss_first)},
               {"loss_last", Finite(result.loss_last)},
               {"relative_change", Finite(result.relative_change)}};
  if (result.perplexity_restored > 0) {
    json["perplexity_first_pass"] = Finite(result.perplexity_first_pass);
    json["perplexity_restored"] = Finite(result.perplexity_restored);
  }
  return json;
}

Json ToJson(const Job& job, const Manifest& manifest) {
  Json json = {{"schema", kManifestSchema},
               {"job", job.name},
               {"job_uid", job.uid},
               {"epoch", job.epoch},
               {"spec_digest", job.spec_digest},
               {"seed", job.seed},
               {"spec_json", job.spec_json},
               {"files", List(manifest.files)},
               {"inputs", List(manifest.inputs)},
               {"versions", Versions()},
               {"blocks", List(manifest.blocks)},
               {"bits", ToJson(manifest.bits)}};
  if (manifest.quality) {
    json["quality"] = QualityJson(*manifest.quality, manifest.evaluation_length);
  }
  if (manifest.preprocessing) json["preprocessing"] = ToJson(*manifest.preprocessing);
  json["timing"] = TimingJson(manifest);
  json["outputs"] = List(manifest.outputs);
  json["peak_rss_bytes"] = manifest.peak_rss_bytes;
  json["device"] = manifest.device;
  if (manifest.compute == ComputeDtype::kBfloat16) json["compute_dtype"] = "bfloat16";
  json["method"] = job.method_row->name;
  json["activation_bits"] = job.activations.bits;
  json["model_type"] = manifest.model_type;
  json["quality_gate_failed"] = manifest.quality_gate_failed;
  json["warnings"] = manifest.warnings;
  json["create_time"] = manifest.create_time;
  return json;
}

}  // namespace

nlohmann::ordered_json ManifestJson(const Job& job, const Manifest& manifest) {
  return WithoutNulls(ToJson(job, manifest));
}

std::string WriteManifest(const Job& job, const Manifest& manifest) {
  const std::string text =
      ManifestJson(job, manifest).dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  WriteFileAtomically(job.output_dir + "/manifest.json", text);
  return Sha256OfText(text);
}

bool GateFails(const QualityGate& gate, const EvaluationResult& quality) {
  const double dense = quality.perplexity_dense;
  const double quantized = quality.perplexity_quantized;
  const auto exceeds = [](double value, double limit) { return limit > 0 && !(value <= limit); };
  return exceeds(quantized / dense, gate.max_perplexity_ratio) ||
         exceeds(quantized - dense, gate.max_perplexity_increase);
}

}  // namespace quantry::engine
