#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/manifest.h"

// A small finished job, for tests of what is written about it.
namespace quantry::engine::test {

inline nlohmann::json FinishedJobJson(const std::string& output_dir = "/o") {
  return {
      {"model_dir", "/secret/m"},
      {"output_dir", output_dir},
      {"seed", -5},
      {"method", {{"awq", {{"grid", {{"bits", 3}, {"group_size", 64}}}}}}},
      {"calibration", {{"text", {{"path", "/secret/c"}}}, {"samples", 4}, {"sequence_length", 32}}},
      {"evaluation", {{"text", {{"path", "/secret/e"}}}, {"sequence_length", 16}}},
      {"outputs", {{{"format", "OUTPUT_FORMAT_QUANTRY"}}, {{"format", "OUTPUT_FORMAT_DENSE"}}}}};
}

inline BlockReport FinishedBlock(int index, double rtn, double final) {
  BlockReport report;
  report.index = index;
  report.loss_rtn = rtn;
  report.loss_final = final;
  report.seconds = 1.5;
  return report;
}

inline Manifest FinishedManifest() {
  Manifest manifest;
  manifest.inputs = {{"model/config.json", 12, std::string(64, 'a')},
                     {"calibration/a|`b`<i>.txt", 34, std::string(64, 'b')}};
  manifest.blocks = {FinishedBlock(0, 2, 1), FinishedBlock(1, 3, 0.5)};
  manifest.blocks[1].metrics["loss_init"] = 1.25;
  manifest.bits = {3.25, 3.5, 1000, 1200, 400, 2400};
  EvaluationResult quality;
  quality.perplexity_dense = 4;
  quality.perplexity_quantized = 5;
  quality.kl_divergence = 0.125;
  quality.top1_agreement = 0.75;
  quality.windows = 3;
  quality.tokens = 45;
  manifest.quality = quality;
  manifest.evaluation_length = 16;
  manifest.run_seconds = 77.25;
  manifest.stage_seconds = {{"STAGE_LOADING", 66.5}};
  manifest.outputs = {{"quantry", "quantry", 500, 3.25, 400, "Only quantry-engine loads it.", true},
                      {"dense", "dense", 2400, 16, 2400, "Everything loads it.", true}};
  manifest.peak_rss_bytes = 987654321;
  manifest.device = "a certain cpu";
  manifest.device_type = "cpu";
  manifest.threads = 2;
  manifest.model_type = "llama";
  manifest.warnings = {"of this run only"};
  manifest.create_time = "2026-01-31T12:00:00Z";
  return manifest;
}

inline RestorationResult FinishedRestoration() {
  RestorationResult result;
  result.updates = 70;
  result.loss_first = 2.5;
  result.loss_last = 2.25;
  result.perplexity_first_pass = 6;
  result.perplexity_restored = 4.5;
  return result;
}

}  // namespace quantry::engine::test
