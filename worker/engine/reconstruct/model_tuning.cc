#include "worker/engine/reconstruct/model_tuning.h"

#include <c10/core/GradMode.h>

#include <algorithm>

#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/working_bytes.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/block_objective.h"
#include "worker/engine/reconstruct/model_backward.h"
#include "worker/engine/reconstruct/over_shares.h"
#include "worker/engine/reconstruct/progressive_rounding.h"
#include "worker/engine/reconstruct/whole_model_training.h"

namespace quantry::engine {
namespace {

// One block: what is fixed, and what is tuned.
struct TunedBlock {
  Block frame;  // linears without weights
  const QuantizedBlock* quantized = nullptr;
  std::vector<at::Tensor> logs;   // log of each scale's factor, [out, groups]
  std::vector<at::Tensor> dense;  // DenseParameters
};

// (codes - zeros), fp32 [out, groups, g].
at::Tensor Offsets(const QuantizedLinear& linear) {
  const int64_t groups = linear.scales.size(1);
  return linear.codes.to(at::kFloat)
      .view({linear.codes.size(0), groups, linear.codes.size(1) / groups})
      .sub_(linear.zeros.to(at::kFloat).unsqueeze(-1));
}

at::Tensor ScalesOf(const TunedBlock& block, size_t i) {
  return block.quantized->linears[i].scales * block.logs[i].exp();
}

// The fp32 block; with `leaves` its tensors want gradients.
Block Materialize(const TunedBlock& tuned, const at::Device& device, bool leaves) {
  const c10::AutoGradMode without_gradients(false);
  Block block = tuned.frame;
  const auto place = [&](const at::Tensor& value) {
    return value.detach().to(device).requires_grad_(leaves);
  };
  for (size_t i = 0; i < block.linears.size(); ++i) {
    const QuantizedLinear& linear = tuned.quantized->linears[i];
    const at::Tensor weight = Offsets(linear).mul_(ScalesOf(tuned, i).unsqueeze(-1));
    block.linears[i].weight = place(weight.view(linear.codes.sizes()));
  }
  const std::vector<at::Tensor*> dense = DenseParameters(block);
  for (size_t i = 0; i < dense.size(); ++i) *dense[i] = place(tuned.dense[i]);
  return block;
}

// A tensor of each linear or dense parameter, block by block.
using TensorsOfBlocks = std::vector<std::vector<at::Tensor>>;

void Append(const TensorsOfBlocks& lists, std::vector<at::Tensor>& to) {
  for (const auto& list : lists) to.insert(to.end(), list.begin(), list.end());
}

class Tuner {
 public:
  Tuner(const ModelTuningTask& task, ComputeDtype compute, std::vector<QuantizedBlock>& blocks)
      : task_(task), head_(task.checkpoint, task.device) {
    for (QuantizedBlock& quantized : blocks) {
      TunedBlock tuned;
      tuned.frame = Rebuild(LoadBlock(task.checkpoint, quantized.index, task.device), quantized,
                            task.activations);
      tuned.frame.compute = compute;
      tuned.quantized = &quantized;
      for (Linear& linear : tuned.frame.linears) linear.weight = at::Tensor();
      for (const QuantizedLinear& linear : quantized.linears) {
        tuned.logs.push_back(at::zeros_like(linear.scales));
      }
      for (const at::Tensor* tensor : DenseParameters(tuned.frame)) {
        tuned.dense.push_back(tensor->to(at::kCPU).clone());
      }
      blocks_.push_back(std::move(tuned));
    }
    rows_ = head_.Rows(0, head_.vocab_size());
  }

  // What is tuned, with the rates of `options`. Part() gives gradients in this order.
  Adam Optimizer(const ModelTuningOptions& options) const {
    Adam adam;
    for (const TunedBlock& block : blocks_) {
      for (const at::Tensor& tensor : block.logs) adam.Add(tensor, options.scale_rate);
    }
    for (const TunedBlock& block : blocks_) {
      for (const at::Tensor& tensor : block.dense) {
        adam.Add(tensor, options.dense_rate * SizeOf(tensor));
      }
    }
    return adam;
  }

  TrainingGradients Step(const std::vector<int64_t>& windows, const StepShare& done) const {
    const double tokens =
        static_cast<double>(windows.size()) * static_cast<double>(task_.windows.size(1));
    OneTells tells(done);
    return OverShares(
        task_.device, windows,
        [&](const std::vector<int64_t>& share) { return Part(share, tokens, tells.Ask()); },
        AddGradients);
  }

  // Writes what was tuned into the blocks, rounded as it is stored.
  void Finish(std::vector<QuantizedBlock>& blocks) const {
    for (size_t b = 0; b < blocks.size(); ++b) {
      const auto dtypes = task_.dense_dtypes(blocks[b].index);
      Block final = blocks_[b].frame;
      const std::vector<at::Tensor*> dense = DenseParameters(final);
      for (size_t i = 0; i < dense.size(); ++i) *dense[i] = blocks_[b].dense[i];
      for (size_t i = 0; i < blocks[b].linears.size(); ++i) {
        QuantizedLinear& linear = blocks[b].linears[i];
        linear.scales = RoundScales(ScalesOf(blocks_[b], i), linear.scale_dtype);
        if (!linear.bias.defined()) continue;
        linear.bias =
            RoundToStorage(final.linears[i].bias, StorageDtype(dtypes, linear.name + ".bias"));
      }
      blocks[b].dense = DenseTensors(final, dtypes);
    }
  }

 private:
  // KL of the vocabulary's distributions, summed over tokens and divided by
  // `tokens`; its slope by the hidden states through `slope`.
  double Divergence(const at::Tensor& outputs, const at::Tensor& wanted, double tokens,
                    at::Tensor& slope) const {
    const at::Tensor teacher = head_.Normalize(wanted).reshape({-1, wanted.size(-1)});
    const auto chunk = [&](int64_t first, int64_t last, const at::Tensor& student,
                           at::Tensor& student_slope) {
      const at::Tensor got = at::log_softmax(at::mm(student, rows_.t()), -1);
      const at::Tensor log_wanted =
          at::log_softmax(at::mm(teacher.slice(0, first, last), rows_.t()), -1);
      const at::Tensor probability = log_wanted.exp();
      const double sum = ((log_wanted - got) * probability).sum(at::kDouble).item<double>();
      student_slope.copy_(at::mm(got.exp().sub_(probability).div_(tokens), rows_));
      return sum;
    };
    return BackwardThroughHead(head_, outputs, chunk, slope) / tokens;
  }

  TrainingGradients Part(const std::vector<int64_t>& windows, double tokens,
                         const StepShare& done) const {
    const at::Tensor index = at::tensor(windows, at::kLong);
    TensorsOfBlocks logs(blocks_.size()), dense(blocks_.size());
    Block block;
    ModelPass pass;
    pass.forward = [&](size_t b, const at::Tensor& hidden) {
      block = Materialize(blocks_[b], task_.device, c10::GradMode::is_enabled());
      return block.Forward(hidden, task_.rope);
    };
    pass.loss = [&](const at::Tensor& outputs, at::Tensor& slope) {
      return Divergence(outputs, task_.outputs.index_select(0, index).to(task_.device), tokens,
                        slope);
    };
    pass.collect = [&](size_t b) {
      logs[b] = LogGradients(blocks_[b], block);
      dense[b] = DenseGradients(block);
    };
    int64_t passed = 0;
    if (done) pass.advance = [&] { done(ShareOfPass(++passed)); };
    TrainingGradients result;
    result.loss = BackwardThroughModel(
        Embed(task_.checkpoint, task_.windows.index_select(0, index), task_.device), blocks_.size(),
        pass);
    Append(logs, result.tensors);
    Append(dense, result.tensors);
    return result;
  }

  double ShareOfPass(int64_t steps) const {
    return static_cast<double>(steps) / static_cast<double>(PassSteps(std::ssize(blocks_)));
  }

  // From the gradients of the tensors it was materialized into.
  static std::vector<at::Tensor> LogGradients(const TunedBlock& tuned, const Block& block) {
    std::vector<at::Tensor> gradients;
    for (size_t i = 0; i < block.linears.size(); ++i) {
      const at::Tensor offsets = Offsets(tuned.quantized->linears[i]);
      const at::Tensor gradient = block.linears[i].weight.grad().to(at::kCPU).view(offsets.sizes());
      gradients.push_back((gradient * offsets).sum(-1).mul_(ScalesOf(tuned, i)));
    }
    return gradients;
  }

  static std::vector<at::Tensor> DenseGradients(Block& block) {
    std::vector<at::Tensor> gradients;
    for (const at::Tensor* tensor : DenseParameters(block)) {
      const at::Tensor& gradient = tensor->grad();
      gradients.push_back(gradient.defined() ? gradient.to(at::kCPU)
                                             : at::zeros_like(*tensor, at::kCPU));
    }
    return gradients;
  }

  const ModelTuningTask& task_;
  OutputHead head_;
  std::vector<TunedBlock> blocks_;
  at::Tensor rows_;  // of the vocabulary, [vocabulary, hidden]
};

}  // namespace

ModelTuningReport TuneModel(const ModelTuningTask& task, const ModelTuningOptions& options,
                            TrainingStore* store, std::vector<QuantizedBlock>& blocks,
                            ProgressSink& progress) {
  const Tuner tuner(task, ComputeOn(task.device, options.compute), blocks);
  const uint64_t stream = Random(options.seed ^ 0x7475u).Next();
  const auto steps = static_cast<double>(options.steps);
  const TrainingState state =
      Train({.doing = "tuning the whole model",
             .advice = "lower the rates or leave model tuning out",
             .loss = "tuning_kl",
             .steps = options.steps,
             .progress_of_step = PassSteps(std::ssize(blocks)),
             .adam = tuner.Optimizer(options),
             .rate_at = [&](int64_t step) { return 1.0 - static_cast<double>(step) / steps; },
             .gradients_at =
                 [&](int64_t step, const StepShare& done) {
                   return tuner.Step(
                       DrawWindows(task.windows.size(0), options.batch_size, stream + step), done);
                 }},
            store, progress);
  tuner.Finish(blocks);
  return {state.loss_first, state.loss_last, state.retries};
}

int64_t TuningBytes(const ModelTuningOptions& options, const Checkpoint& checkpoint,
                    int64_t group_size, int64_t length, const at::Device& device) {
  const Architecture& architecture = checkpoint.architecture();
  const ModelConfig& config = checkpoint.config();
  constexpr int64_t kFloat = sizeof(float);
  // Scale, its logarithm, how that began and two moments of it, beside a share's gradient.
  constexpr int64_t kFloatsAScale = 5;
  // A share's block with its gradient, and the one before it.
  constexpr int64_t kBlockCopies = 3;
  // Teacher, student, their exponentials and differences.
  constexpr int64_t kLogitTensors = 6;
  const int64_t shares = Shares(device, options.batch_size);
  int64_t block = 0;
  for (const LinearSpec& linear : architecture.linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    const int64_t groups = group_size > 0 ? shape.in / group_size : 1;
    block += shape.out * (shape.in + groups * (kFloatsAScale + shares) * kFloat);
  }
  const int64_t head = config.vocab_size * config.hidden_size * kFloat;
  const int64_t tokens = options.batch_size * length;
  const int64_t hidden = tokens * config.hidden_size * kFloat * (config.num_layers + 1);
  const int64_t logits = std::min(kMaxLogits * shares, tokens * config.vocab_size);
  // The first share's copies are those that every job has.
  const int64_t copies = (shares - 1) * kBlockCopies * BlockWeights(architecture, config) * kFloat;
  const int64_t integers = device.is_cpu() ? config.num_layers * block : 0;  // host memory
  return integers + copies + head + hidden + kLogitTensors * logits * kFloat +
         RoundedBytes(architecture, config, options.compute, options.batch_size, device) +
         KeptActivationBytes(config, {options.batch_size, length}, options.batch_size);
}

}  // namespace quantry::engine
