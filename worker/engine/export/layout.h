#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "worker/engine/model/architecture.h"
#include "worker/engine/model/safetensors.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// A quantized linear by its whole module path, before there are any values.
struct PlannedLinear {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  LinearShape shape;
};

// A tensor of a written file by its whole name, in its storage dtype.
using TensorReader = std::function<at::Tensor(const std::string& name)>;

// How one output format stores a quantized linear. Everything else of an
// output (shards, dense tensors, config.json, tokenizer) is the Exporter's.
// Immutable and thread-safe.
class Layout {
 public:
  Layout(const GridSpec& grid, at::ScalarType scale_dtype)
      : grid_(grid), scale_dtype_(scale_dtype) {}
  virtual ~Layout() = default;

  virtual std::string_view format() const = 0;     // "compressed-tensors"
  virtual std::string_view file_stem() const = 0;  // "model" -> model.safetensors
  virtual std::vector<TensorSpec> Specs(const PlannedLinear& linear) const = 0;
  // Values of Specs, in its order.
  virtual std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const = 0;
  // Reads `linear` back and sets it against `expected`, not using the code
  // that wrote it. Empty when equal; otherwise what differs, and where.
  virtual std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                               const QuantizedLinear& expected) const = 0;
  // Adds what readers need to config.json.
  virtual void Describe(nlohmann::ordered_json& config) const = 0;
  // safetensors metadata of a file that holds these linears.
  virtual std::map<std::string, std::string> Metadata(
      const std::vector<PlannedLinear>& linears) const;
  // Which engines load it, which not, and why.
  virtual std::string Compatibility(const std::vector<PlannedLinear>& linears) const = 0;

  const GridSpec& grid() const { return grid_; }
  at::ScalarType scale_dtype() const { return scale_dtype_; }
  int64_t Groups(const PlannedLinear& linear) const {
    return linear.shape.in / grid_.GroupSizeFor(linear.shape.in);
  }

 private:
  GridSpec grid_;
  at::ScalarType scale_dtype_;
};

// One row of the table of output formats.
struct OutputFormatRow {
  std::string name;       // "compressed-tensors"; also the folder in the artifact
  std::string enum_name;  // OUTPUT_FORMAT_COMPRESSED_TENSORS
  std::unique_ptr<Layout> (*create)(const GridSpec& grid, at::ScalarType scale_dtype);
  std::vector<int> bits = {2, 3, 4, 6, 8};  // of one weight, that readers know
  // Whether a model with online rotations may be written so: only where it is
  // plain that nothing but this engine runs it.
  bool carries_online_rotation = false;
};

const std::vector<OutputFormatRow>& OutputFormats();

}  // namespace quantry::engine
