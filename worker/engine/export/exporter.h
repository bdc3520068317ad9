#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/export/layout.h"
#include "worker/engine/model/checkpoint.h"
#include "worker/engine/model/sharded_writer.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// One tensor of the source checkpoint and what an output makes of it.
struct PlannedTensor {
  enum class Kind { kLinear, kBias, kBlockDense, kOther };
  Kind kind = Kind::kOther;
  std::string source;   // name in the source checkpoint
  std::string written;  // name in the output; kLinear: the module path
  int block = -1;
  std::string key;          // below the block: "self_attn.q_proj", "input_layernorm.weight"
  LinearShape shape;        // kLinear only
  int64_t salient = 0;      // kLinear of mixed weights only
  std::string mask_module;  // kLinear only: PlannedLinear::mask_module
  int64_t value_bits = 0;   // kLinear only: PlannedLinear::value_bits
  TensorSpec dense;         // the others

  PlannedLinear Linear() const { return {written, shape, salient, mask_module, value_bits}; }
};

// Salient columns of a linear (its name below the block) of mixed weights.
using SalientColumns =
    std::function<int64_t(int block, const std::string& linear, int64_t in_features)>;

// The tensors of every output in the order of the forward pass. Names get the
// architecture's usual prefix, whatever the source had. `salient` is asked for
// mixed weights only.
std::vector<PlannedTensor> PlanTensors(const Checkpoint& checkpoint,
                                       const SalientColumns& salient = {});

// The quantized linears among them.
std::vector<PlannedLinear> PlannedLinears(const std::vector<PlannedTensor>& plan);

// All tensors a layout writes for a plan.
std::vector<TensorSpec> OutputSpecs(const std::vector<PlannedTensor>& plan, const Layout& layout);

// What a finished output says of itself (OutputSummary in artifact.proto).
struct OutputSummary {
  std::string format;
  std::string path;                // folder inside the artifact
  uint64_t bytes = 0;              // weight files
  double bits_per_weight = 0;      // of the quantized linears, in this layout
  uint64_t theoretical_bytes = 0;  // of the weight files, see TheoreticalBytes
  std::string compatibility;
  bool verified = false;
};

using BlockReader = std::function<QuantizedBlock(int index)>;

// Writes one output layout of a checkpoint into a folder, one block at a time,
// and proves it by reading it back. Use: Add every block in order, Finish,
// Verify. Not thread-safe. A crash leaves complete shards and *.partial files;
// a new Exporter on the same folder writes over both. Disk errors are
// EngineError ENVIRONMENT.
class Exporter {
 public:
  // `dir` exists. The checkpoint and the layout must outlive the exporter.
  Exporter(const Checkpoint& checkpoint, const Layout& layout, std::string dir,
           uint64_t max_shard_bytes = kMaxShardBytes);
  // With a plan made by PlanTensors for this checkpoint.
  Exporter(const Checkpoint& checkpoint, const Layout& layout, std::string dir,
           std::vector<PlannedTensor> plan, uint64_t max_shard_bytes = kMaxShardBytes);

  void Add(const QuantizedBlock& block);
  OutputSummary Finish();

  // Re-reads every file and compares it with the source's dense tensors and
  // with `blocks`. Throws EngineError "OUTPUT_VERIFICATION_FAILED" naming the
  // tensor. `progress` is called after each block.
  void Verify(const BlockReader& blocks, const std::function<void()>& progress = {}) const;

  // File names inside the folder, after Finish.
  const std::vector<std::string>& files() const { return files_; }
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  void WriteUpTo(int block);  // tensors outside blocks that come before it
  void AppendDense(const PlannedTensor& tensor, const at::Tensor& value);

  const Checkpoint& checkpoint_;
  const Layout& layout_;
  std::string dir_;
  std::vector<PlannedTensor> plan_;
  size_t next_ = 0;
  ShardedWriter writer_;
  std::vector<std::string> files_;
  std::vector<std::string> warnings_;
};

}  // namespace quantry::engine
