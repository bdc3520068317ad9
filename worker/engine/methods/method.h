#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "worker/engine/nn/block.h"
#include "worker/engine/nn/rope.h"
#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// Hears of work done inside one block, at least once a second of work.
// Thread-safe; may throw to stop the method.
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  // `steps` of Method::Steps are done; `what` is shown to the user.
  virtual void Advance(int64_t steps, std::string_view what) = 0;
  // So many more than Method::Steps said will be done: something starts over, or goes on.
  virtual void Extend(int64_t) {}
  // `steps` were done by an earlier run.
  virtual void TakeOver(int64_t steps) { Advance(steps, "taken from the checkpoint"); }
  // Figures of the work in progress, finite, for whoever watches: they stand
  // beside the next progress until the next block begins or others replace them.
  virtual void Measure(const std::map<std::string, double>&) {}
  // `steps` that cost the same each begin and, after that many, end: adapters,
  // tuning of the whole model.
  virtual void PhaseStarted(int64_t) {}
};

// Shape of the calibration stream, known before the first block.
struct StreamShape {
  int64_t windows = 0;  // 0 = no calibration data
  int64_t length = 0;   // tokens a window
};

class StageStore;           // reconstruct/progressive_rounding.h
struct ModelTuningOptions;  // reconstruct/model_tuning.h

// One block to quantize. The method changes nothing of it.
struct BlockTask {
  const Block& block;  // fp32, on `device`
  const RopeTable& rope;
  // Inputs of this block, fp32 [windows, length, hidden], host memory: through
  // the original and through the quantized blocks before. Undefined when the
  // job has no calibration data.
  at::Tensor x_fp;
  at::Tensor x_q;
  GridSpec grid;
  at::ScalarType scale_dtype = at::kHalf;
  // Storage dtype of every dense tensor (norms, biases), key below the block:
  // "input_layernorm.weight". Folded values are rounded to it.
  std::map<std::string, at::ScalarType> dense_dtypes;
  uint64_t seed = 0;
  at::Device device = at::kCPU;
  // How inputs of the quantized linears will be quantized when the model runs.
  // `block` itself never quantizes them; Block::activations of a trial block
  // and FakeQuantizeActivations in a hook do.
  ActivationSpec activations = {};
  // Where a method that works in stages keeps them; nullptr = nowhere. Not
  // owned.
  StageStore* stages = nullptr;
  // Reads this block as the first pass of preprocessing left it; empty in that
  // pass and in jobs without one.
  std::function<QuantizedBlock()> first_pass = {};
};

// Of a metric that counts gains and scales of one linear, whose name follows,
// that lie beyond what they are stored in; the job then warns.
inline constexpr char kClippedMetric[] = "clipped.";
// Of a metric that is 1 for a linear, whose name follows, that was rounded to
// nearest because the method could not do better; the job then warns.
inline constexpr char kNearestMetric[] = "rounded_to_nearest.";

struct MethodResult {
  QuantizedBlock block;
  // For the block's report: finite values, at most 64.
  std::map<std::string, double> metrics;
};

// A quantization method: a pure function of a task. The same task, thread
// count and device type give the same bytes. Options are fixed at
// construction. Thread-safe.
class Method {
 public:
  virtual ~Method() = default;
  // Whether these options need calibration data, where the method itself may do
  // without (MethodRow::needs_calibration).
  virtual bool NeedsCalibration() const { return false; }
  // Whether it works, with these options, on a model that preprocessing has
  // restored, and on no other.
  virtual bool NeedsPreprocessing() const { return false; }
  // What its training steps' products are rounded to.
  virtual ComputeChoice Compute() const { return ComputeDtype::kFloat32; }
  // What quantizes the model that preprocessing trains adapters on.
  virtual const Method& FirstPass() const { return *this; }
  // Steps one block takes with this calibration: what Quantize reports in
  // sum, exactly.
  virtual int64_t Steps(const Architecture& architecture, const ModelConfig& config,
                        const StreamShape& stream) const = 0;
  // Memory a block takes beyond the two streams and four fp32 copies of it where
  // `device` computes: the host's cores, this process's threads, each hold what
  // they work on.
  virtual int64_t WorkingBytes(const Architecture&, const ModelConfig&, const StreamShape&,
                               const at::Device&) const {
    return 0;
  }
  // Calibration for a job that leaves windows or length open.
  virtual StreamShape DefaultCalibration() const { return {128, 2048}; }
  // Throws UserError when the method cannot work with this calibration.
  virtual void Check(const StreamShape&) const {}
  // What is done once all blocks are quantized; nullptr = nothing.
  virtual const ModelTuningOptions* Tuning() const { return nullptr; }
  // Columns of a linear this wide that are kept in 4 bits (WeightKind::
  // kMixedBinary), as far as it is known before the data.
  virtual int64_t SalientColumns(int64_t) const { return 0; }
  // Bits a linear of this shape would take packed (WeightKind::kValues).
  virtual int64_t ValueBits(const LinearShape&) const { return 0; }
  // Throws EngineError "NON_FINITE_LOSS" naming the block and the step.
  virtual MethodResult Quantize(const BlockTask& task, ProgressSink& progress) const = 0;
};

}  // namespace quantry::engine
