// Which output formats a method writes and which can hold what it makes: what a
// client learns at submit instead of from a failed job. The engine holds the same rules
// (worker/engine/export/layout.cc, worker/engine/pipeline/job.cc) and those that
// need the model's shapes.
#pragma once

#include <optional>
#include <string>

#include "quantry/v1/job.pb.h"
#include "quantry/v1/method.pb.h"

namespace quantry::server {

// The grid of whichever method is set; nullptr when it has none.
const v1::WeightGrid* GridOf(const v1::Method& method);

// Whether the engine is to rotate activations while the model runs. `recipe`: the
// row that the method names; nullptr when it names none, or it is not known.
bool RotatesOnline(const v1::Method& method, const v1::RecipeDescription* recipe);

// What an output has to hold.
struct OutputContent {
  std::optional<v1::WeightGrid> grid;  // nullopt: none, or its bits are not known
  bool online_rotation = false;
};

// What the content must be for the format ("a grid of 4 bits"); empty when this
// one will do.
std::string WantedContent(v1::OutputFormat format, const OutputContent& content);

// "4 bits, asymmetric, activations rotated online": the content in words.
std::string ContentText(const OutputContent& content);

// Whether the method writes the format; true where the engine does not say.
bool Writes(const v1::MethodDescription& method, v1::OutputFormat format);

// "gptq-v1": as clients take it, and MethodDescription.output_formats has it.
std::string WordOf(v1::OutputFormat format);

// "compressed-tensors, dense, ...": the formats that the method writes and that
// can hold the content.
std::string FormatsHolding(const OutputContent& content, const v1::MethodDescription& method);

// All of them.
std::string KnownFormats();

}  // namespace quantry::server
