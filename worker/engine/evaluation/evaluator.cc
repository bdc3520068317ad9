#include "worker/engine/evaluation/evaluator.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/evaluation/vocabulary_loss.h"
#include "worker/engine/nn/rope.h"
#include "worker/engine/nn/transformer.h"

namespace quantry::engine {
namespace {

// Tokens of one forward pass through a block: enough for full-speed products,
// few enough that a block's intermediates stay far below the streams.
constexpr int64_t kBatchTokens = 1024;

constexpr int64_t kLeastStreamBytes = int64_t{64} << 20;
constexpr int64_t kMostStreamBytes = int64_t{1} << 30;

int64_t ChunkWindows(const ModelConfig& config, int64_t windows, int64_t length,
                     bool with_quantized, const EvaluationOptions& options) {
  const int64_t streams = with_quantized ? 2 : 1;
  const int64_t window_bytes = streams * length * config.hidden_size * int64_t{sizeof(float)};
  return std::clamp<int64_t>(options.max_stream_bytes / window_bytes, 1,
                             std::max<int64_t>(windows, 1));
}

// Replaces each window's hidden states by the block's output, in place.
void Advance(const Block& block, const RopeTable& rope, const at::Device& device,
             at::Tensor* stream) {
  const int64_t step = EvaluationBatch(stream->size(1));
  for (int64_t i = 0; i < stream->size(0); i += step) {
    at::Tensor part = stream->narrow(0, i, std::min(step, stream->size(0) - i));
    part.copy_(block.Forward(part.to(device), rope));
  }
}

void AddLosses(const VocabularyLoss& loss, const at::Tensor& dense, const at::Tensor& quantized,
               const at::Tensor& ids, const at::Device& device, LossSums* sums) {
  const int64_t step = EvaluationBatch(ids.size(1));
  for (int64_t i = 0; i < ids.size(0); i += step) {
    const int64_t n = std::min(step, ids.size(0) - i);
    const auto part = [&](const at::Tensor& t) {
      return t.defined() ? t.narrow(0, i, n).to(device) : t;
    };
    loss.Add(part(dense), part(quantized), ids.narrow(0, i, n), sums);
  }
}

void CheckFinite(const LossSums& sums) {
  if (std::isfinite(sums.nll_dense)) return;
  throw UserError("NON_FINITE_WEIGHTS",
                  "the dense model's loss is not a finite number: its weights overflow fp32 in the "
                  "forward pass");
}

EvaluationResult Result(const LossSums& sums, int64_t windows, bool with_quantized) {
  EvaluationResult result;
  const auto count = static_cast<double>(sums.tokens);
  result.windows = windows;
  result.tokens = sums.tokens;
  result.perplexity_dense = std::exp(sums.nll_dense / count);
  if (!with_quantized) return result;
  result.perplexity_quantized = std::exp(sums.nll_quantized / count);
  // Rounding can leave a tiny negative number where the chains are equal; a
  // chain that is not finite agrees with nothing.
  const double kl = sums.kl / count;
  result.kl_divergence = kl < 0 ? 0.0 : kl;
  result.top1_agreement = std::isfinite(sums.nll_quantized)
                              ? static_cast<double>(sums.same_argmax) / count
                              : std::numeric_limits<double>::quiet_NaN();
  return result;
}

}  // namespace

int64_t EvaluationBatch(int64_t length) { return std::max<int64_t>(1, kBatchTokens / length); }

int64_t EvaluationStreamBytes(int64_t calibration_tokens, int64_t hidden_size) {
  return std::clamp(2 * calibration_tokens * hidden_size * static_cast<int64_t>(sizeof(float)),
                    kLeastStreamBytes, kMostStreamBytes);
}

int64_t EvaluationSteps(const Checkpoint& checkpoint, int64_t windows, int64_t length,
                        bool with_quantized, const EvaluationOptions& options) {
  const int64_t chunk = ChunkWindows(checkpoint.config(), windows, length, with_quantized, options);
  return (windows + chunk - 1) / chunk * (checkpoint.config().num_layers + 1);
}

EvaluationResult Evaluate(const Checkpoint& checkpoint, const at::Tensor& windows,
                          const BlockProvider& quantized, const EvaluationOptions& options,
                          const EvaluationProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  const int64_t count = windows.size(0), length = windows.size(1);
  CheckSequenceLength(checkpoint.architecture(), config, length);
  const bool both = static_cast<bool>(quantized);
  const int64_t chunk = ChunkWindows(config, count, length, both, options);
  const int64_t steps = EvaluationSteps(checkpoint, count, length, both, options);
  const RopeTable rope = MakeRopeTable(checkpoint.architecture(), config, length, options.device);
  const Checkpoint& ends = options.quantized_ends ? *options.quantized_ends : checkpoint;
  const VocabularyLoss loss(checkpoint, ends, options.device);
  LossSums sums;
  int64_t done = 0;
  const auto step_done = [&] {
    ++done;
    if (progress) progress(done, steps);
  };
  for (int64_t first = 0; first < count; first += chunk) {
    const at::Tensor ids = windows.narrow(0, first, std::min(chunk, count - first));
    // The streams lie in host memory; only batches go to the device.
    at::Tensor dense = Embed(checkpoint, ids);
    at::Tensor other =
        both ? &ends == &checkpoint ? dense.clone() : Embed(ends, ids) : at::Tensor();
    for (int i = 0; i < config.num_layers; ++i) {
      Advance(options.blocks ? options.blocks(i) : LoadBlock(checkpoint, i, options.device), rope,
              options.device, &dense);
      if (both) Advance(quantized(i), rope, options.device, &other);
      step_done();
    }
    AddLosses(loss, dense, other, ids, options.device, &sums);
    step_done();
  }
  CheckFinite(sums);
  return Result(sums, count, both);
}

}  // namespace quantry::engine
