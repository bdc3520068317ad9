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

// Of a stored scale, fp16 or bf16.
inline constexpr int64_t kScaleBits = 16;

// A quantized linear by its whole module path, before there are any values.
struct PlannedLinear {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  LinearShape shape;
  // WeightKind::kMixedBinary only: columns kept in 4 bits, and the module that
  // holds the mask (itself, or the first linear with the same input).
  int64_t salient = 0;
  std::string mask_module = {};
  int64_t value_bits = 0;  // kValues only: what the method says it would take packed

  bool holds_mask() const { return mask_module == module; }
};

// A tensor of a written file by its whole name, in its storage dtype.
using TensorReader = std::function<at::Tensor(const std::string& name)>;

// How one output format stores a quantized linear. Everything else of an
// output (shards, dense tensors, config.json, tokenizer) is the Exporter's.
// Immutable and thread-safe.
class Layout {
 public:
  Layout(const GridSpec& grid, at::ScalarType scale_dtype, WeightKind kind = WeightKind::kGrid)
      : grid_(grid), scale_dtype_(scale_dtype), kind_(kind) {}
  virtual ~Layout() = default;

  virtual std::string_view format() const = 0;     // "compressed-tensors"
  virtual std::string_view file_stem() const = 0;  // "model" -> model.safetensors
  virtual std::vector<TensorSpec> Specs(const PlannedLinear& linear) const = 0;
  // Values of Specs, in its order; what another linear holds already may follow.
  virtual std::vector<at::Tensor> Encode(const QuantizedLinear& linear) const = 0;
  // Reads `linear` back and sets it against `expected`, not using the code
  // that wrote it. Empty when equal; otherwise what differs, and where.
  virtual std::string Mismatch(const TensorReader& read, const PlannedLinear& linear,
                               const QuantizedLinear& expected) const = 0;
  // Adds what readers need to config.json.
  virtual void Describe(nlohmann::ordered_json& config) const = 0;
  // Files beside config.json, name to content, for readers that look there.
  virtual std::map<std::string, std::string> MoreFiles() const { return {}; }
  // safetensors metadata of a file that holds these linears.
  virtual std::map<std::string, std::string> Metadata(
      const std::vector<PlannedLinear>& linears) const;
  // Which engines load it, which not, and why.
  virtual std::string Compatibility(const std::vector<PlannedLinear>& linears) const = 0;

  // Why it cannot hold linears of these shapes, naming them; empty when it can.
  // Asked before any work is done.
  virtual std::string Refusal(const std::vector<PlannedLinear>&) const { return ""; }
  // Bits this layout needs for one linear, without padding to words and
  // headers: what its files should take. Rows that the format itself fills up
  // to whole bytes (MixedBinaryLayout) count in full.
  virtual int64_t StoredBits(const PlannedLinear& linear) const;

  const GridSpec& grid() const { return grid_; }
  at::ScalarType scale_dtype() const { return scale_dtype_; }
  WeightKind kind() const { return kind_; }
  // Bits of a linear's integers and side data, whatever the file adds.
  int64_t LinearBits(const PlannedLinear& linear) const;
  int64_t Groups(const PlannedLinear& linear) const {
    return linear.shape.in / grid_.GroupSizeFor(linear.shape.in);
  }

 private:
  GridSpec grid_;
  at::ScalarType scale_dtype_;
  WeightKind kind_;
};

// One row of the table of output formats.
struct OutputFormatRow {
  std::string name;       // "compressed-tensors"; also the folder in the artifact
  std::string enum_name;  // OUTPUT_FORMAT_COMPRESSED_TENSORS
  std::unique_ptr<Layout> (*create)(const GridSpec& grid, at::ScalarType scale_dtype);
  // Why it cannot hold integers of a grid; empty when it can.
  std::string (*refuses)(const GridSpec& grid);
  // The same for WeightKind::kMixedBinary; nullptr when the format cannot hold it.
  std::unique_ptr<Layout> (*create_mixed)();
  std::unique_ptr<Layout> (*create_values)();  // the same for WeightKind::kValues
  // Whether a model with online rotations may be written so: only where it is
  // plain that nothing but this engine runs it.
  bool carries_online_rotation;
};

const std::vector<OutputFormatRow>& OutputFormats();

// Throws UserError INVALID_SPEC when the format cannot hold integers of this
// grid; the message says why and which formats can.
void CheckFormat(const OutputFormatRow& format, const GridSpec& grid);
// The same for shapes, which are known once the model is open.
void CheckShapes(const OutputFormatRow& format, const GridSpec& grid,
                 const std::vector<PlannedLinear>& linears);
// The layout of a format for weights of one kind. BUG when it has none.
std::unique_ptr<Layout> CreateLayout(const OutputFormatRow& format, WeightKind kind,
                                     const GridSpec& grid, at::ScalarType scale_dtype);

}  // namespace quantry::engine
