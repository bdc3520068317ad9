#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

// What the HTML report and the model cards say alike.
namespace quantry::engine {

std::string ShortNumber(double value);   // "4.1318"
std::string ShortBytes(double bytes);    // "1.4 MB", powers of 1000
std::string ShortPercent(double share);  // "98.3 %"

// "llama, awq, 4 bits, group size 128", "llama, ptq161 (ptq161-plus), 1.61 bits,
// after preprocessing"; what was made, in words.
std::string Headline(const nlohmann::ordered_json& report);

struct PerplexityRow {
  std::string model;       // "quantized"
  std::string perplexity;  // "4.3" or "n/a"
  std::string ratio;       // to the dense model's, "" where there is none
};

// The dense model, and what came of it; with preprocessing also the model
// quantized by its first pass and the restored one. Empty without an evaluation.
std::vector<PerplexityRow> PerplexityRows(const nlohmann::ordered_json& report);

}  // namespace quantry::engine
