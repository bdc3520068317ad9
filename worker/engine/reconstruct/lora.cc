#include "worker/engine/reconstruct/lora.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "worker/engine/base/error.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/methods/linear_shapes.h"
#include "worker/engine/nn/transformer.h"
#include "worker/engine/reconstruct/model_backward.h"
#include "worker/engine/reconstruct/over_shares.h"
#include "worker/engine/reconstruct/whole_model_training.h"

namespace quantry::engine {
namespace {

constexpr int64_t kDefaultRank = 64;
constexpr double kPi = 3.14159265358979323846;

bool Adapts(const LoraOptions& options, LinearRole role) {
  return options.attention_output || role != LinearRole::kAttentionOut;
}

// The same for every linear, as in the authors' code: in one with a smaller side
// too it is what the adapters' scale and the speed at which they learn go by.
int64_t RankOf(const LoraOptions& options) {
  return options.rank > 0 ? options.rank : kDefaultRank;
}

int64_t WarmupOf(const LoraOptions& options) {
  return options.warmup_steps >= 0 ? options.warmup_steps : options.steps / 10;
}

// Linear rise, then a cosine down to 0.
double RateAt(const LoraOptions& options, int64_t step) {
  const int64_t warmup = WarmupOf(options);
  if (step < warmup) {
    return options.learning_rate * static_cast<double>(step) / static_cast<double>(warmup);
  }
  const double along = static_cast<double>(step - warmup) /
                       static_cast<double>(std::max<int64_t>(1, options.steps - warmup));
  return options.learning_rate * 0.5 * (1.0 + std::cos(kPi * along));
}

// Windows of each step: one shuffled pass over the corpus after another.
class WindowOrder {
 public:
  WindowOrder(int64_t windows, uint64_t seed) : order_(windows), seed_(seed) {}

  std::vector<int64_t> At(int64_t step, int64_t count) {
    std::vector<int64_t> windows;
    for (int64_t i = step * count; i < (step + 1) * count; ++i) {
      const auto size = static_cast<int64_t>(order_.size());
      if (i / size != epoch_) Shuffle(i / size);
      windows.push_back(order_[i % size]);
    }
    return windows;
  }

 private:
  void Shuffle(int64_t epoch) {
    epoch_ = epoch;
    std::iota(order_.begin(), order_.end(), 0);
    Random random(seed_ ^ (static_cast<uint64_t>(epoch) << 20));
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.Below(i)]);
  }

  std::vector<int64_t> order_;
  uint64_t seed_;
  int64_t epoch_ = -1;
};

// One adapted linear: places of its A and B (the next) among the adapters.
struct Slot {
  size_t linear = 0;
  size_t adapter = 0;
  double scale = 0;
};

class AdaptedModel {
 public:
  AdaptedModel(const Checkpoint& checkpoint, const RopeTable& rope, const at::Tensor& windows,
               const at::Device& device, const LoraOptions& options, std::vector<Block>& blocks)
      : checkpoint_(checkpoint),
        rope_(rope),
        windows_(windows),
        device_(device),
        options_(options),
        blocks_(blocks),
        head_(checkpoint, device),
        rows_(head_.Rows(0, head_.vocab_size())) {
    slots_.resize(blocks.size());
    for (size_t b = 0; b < blocks.size(); ++b) AddSlots(b);
    if (adapters_.empty()) {
      throw EngineError(FailureClass::kBug, "INTERNAL", "no linear takes adapters");
    }
  }

  std::vector<at::Tensor>& adapters() { return adapters_; }

  TrainingGradients Step(int64_t step, const std::vector<int64_t>& windows,
                         const StepShare& done) const {
    const auto predicted =
        static_cast<double>(windows.size()) * static_cast<double>(windows_.size(1) - 1);
    OneTells tells(done);
    return OverShares(
        device_, windows,
        [&](const std::vector<int64_t>& share) {
          return Part(step, share, predicted, tells.Ask());
        },
        AddGradients);
  }

  // Adds the adapters to the weights; returns the mean relative change.
  double Merge() {
    const c10::AutoGradMode without_gradients(false);
    double sum = 0, count = 0;
    for (size_t b = 0; b < slots_.size(); ++b) {
      for (const Slot& slot : slots_[b]) {
        at::Tensor& weight = blocks_[b].linears[slot.linear].weight;
        const at::Tensor change =
            at::mm(adapters_[slot.adapter + 1], adapters_[slot.adapter]).mul_(slot.scale);
        sum += (change.norm() / weight.norm().clamp_min(1e-30)).item<double>();
        count += 1;
        weight = weight + change;
      }
    }
    return sum / count;
  }

 private:
  void AddSlots(size_t b) {
    const Block& block = blocks_[b];
    for (size_t i = 0; i < block.linears.size(); ++i) {
      if (!Adapts(options_, block.architecture->linears[i].role)) continue;
      const at::Tensor& weight = block.linears[i].weight;
      const int64_t rank = RankOf(options_);
      slots_[b].push_back({i, adapters_.size(), options_.alpha / static_cast<double>(rank)});
      // A uniform in +-1/sqrt(in) as the field's libraries start it, B at 0.
      at::Generator random = at::detail::createCPUGenerator(
          Random(options_.seed ^ (uint64_t{0x10aa} << 40) ^ adapters_.size()).Next());
      const double bound = 1.0 / std::sqrt(static_cast<double>(weight.size(1)));
      adapters_.push_back(at::empty({rank, weight.size(1)}, at::kFloat)
                              .uniform_(-bound, bound, random)
                              .to(device_));
      adapters_.push_back(at::zeros({weight.size(0), rank}, weight.options()));
    }
  }

  // x [windows, tokens, in] times scaled zeros and ones: the same in the forward
  // and the backward pass, each window's its own whichever it is taken with.
  at::Tensor Dropout(const at::Tensor& x, int64_t step, const std::vector<int64_t>& windows,
                     size_t adapter) const {
    if (options_.dropout <= 0) return x;
    at::Tensor kept = at::empty(x.sizes(), at::kFloat);
    for (size_t i = 0; i < windows.size(); ++i) {
      const uint64_t place =
          (static_cast<uint64_t>(step) << 24) ^ static_cast<uint64_t>(windows[i]);
      at::Generator random = at::detail::createCPUGenerator(
          Random(options_.seed ^ Random(place).Next() ^ (static_cast<uint64_t>(adapter) << 48))
              .Next());
      kept.select(0, static_cast<int64_t>(i)).bernoulli_(1.0 - options_.dropout, random);
    }
    return x * kept.div_(1.0 - options_.dropout).to(x.device());
  }

  double NextTokenLoss(const at::Tensor& outputs, const at::Tensor& ids, double predicted,
                       at::Tensor& slope) const {
    // A row of the outputs predicts the token after it; the last has none.
    const at::Tensor next = at::constant_pad_nd(ids.slice(1, 1), {0, 1}, -1).reshape({-1, 1});
    const auto chunk = [&](int64_t first, int64_t last, const at::Tensor& normed,
                           at::Tensor& normed_slope) {
      const at::Tensor wanted = next.slice(0, first, last).to(device_);
      const at::Tensor counts = wanted.ge(0).to(at::kFloat);
      const at::Tensor index = wanted.clamp_min(0);
      const at::Tensor logs = at::log_softmax(at::mm(normed, rows_.t()), -1);
      const double sum = -(logs.gather(1, index) * counts).sum(at::kDouble).item<double>();
      at::Tensor error = logs.exp();
      error.scatter_add_(1, index, at::full_like(counts, -1.0));
      normed_slope.copy_(at::mm(error.mul_(counts / predicted), rows_));
      return sum;
    };
    return BackwardThroughHead(head_, outputs, chunk, slope) / predicted;
  }

  // Accumulates a few windows at a time: what is held does not grow with them.
  TrainingGradients Part(int64_t step, const std::vector<int64_t>& windows, double predicted,
                         const StepShare& done) const {
    const auto count = static_cast<int64_t>(windows.size());
    const int64_t most = WindowsPerBatch(windows_.size(1));
    const int64_t passes = PassSteps(std::ssize(blocks_)) * ((count + most - 1) / most);
    int64_t passed = 0;
    const auto advance = [&] {
      if (done) done(static_cast<double>(++passed) / static_cast<double>(passes));
    };
    TrainingGradients sum;
    for (int64_t first = 0; first < count; first += most) {
      const auto begin = windows.begin() + first;
      TrainingGradients group =
          Together(step, {begin, begin + std::min(most, count - first)}, predicted, advance);
      if (first == 0) {
        sum = std::move(group);
      } else {
        AddGradients(sum, group);
      }
    }
    return sum;
  }

  TrainingGradients Together(int64_t step, const std::vector<int64_t>& windows, double predicted,
                             const std::function<void()>& advance) const {
    const at::Tensor ids = windows_.index_select(0, at::tensor(windows, at::kLong));
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& adapter : adapters_) {
      leaves.push_back(adapter.detach().requires_grad_(true));
    }
    ModelPass pass;
    pass.forward = [&](size_t b, const at::Tensor& hidden) {
      return blocks_[b].Forward(hidden, rope_, [&](int linear, const at::Tensor& x) {
        const at::Tensor plain = blocks_[b].Apply(linear, x);
        for (const Slot& slot : slots_[b]) {
          if (static_cast<int>(slot.linear) != linear) continue;
          const at::Tensor input = Dropout(x, step, windows, slot.adapter);
          const at::Tensor low = at::matmul(input, leaves[slot.adapter].t());
          return plain + at::matmul(low, leaves[slot.adapter + 1].t()) * slot.scale;
        }
        return plain;
      });
    };
    pass.loss = [&](const at::Tensor& outputs, at::Tensor& slope) {
      return NextTokenLoss(outputs, ids, predicted, slope);
    };
    pass.collect = [](size_t) {};
    pass.advance = advance;
    TrainingGradients result;
    result.loss = BackwardThroughModel(Embed(checkpoint_, ids, device_), blocks_.size(), pass);
    for (const at::Tensor& leaf : leaves) result.tensors.push_back(leaf.grad());
    return result;
  }

  const Checkpoint& checkpoint_;
  const RopeTable& rope_;
  const at::Tensor& windows_;
  at::Device device_;
  const LoraOptions& options_;
  std::vector<Block>& blocks_;
  OutputHead head_;
  at::Tensor rows_;  // of the vocabulary, [vocabulary, hidden]
  std::vector<std::vector<Slot>> slots_;
  std::vector<at::Tensor> adapters_;
};

void Clip(std::vector<at::Tensor>& gradients, double most) {
  double squares = 0;
  for (const at::Tensor& gradient : gradients) {
    squares += gradient.square().sum(at::kDouble).item<double>();
  }
  const double factor = most / (std::sqrt(squares) + 1e-6);
  if (factor >= 1) return;
  for (at::Tensor& gradient : gradients) gradient.mul_(factor);
}

}  // namespace

LoraReport TrainLora(const Checkpoint& checkpoint, const RopeTable& rope, const at::Tensor& windows,
                     const at::Device& device, const LoraOptions& options, TrainingStore* store,
                     std::vector<Block>& blocks, ProgressSink& progress) {
  AdaptedModel model(checkpoint, rope, windows, device, options, blocks);
  WindowOrder order(windows.size(0), Random(options.seed ^ 0x4c6fu).Next());
  Adam adam;
  for (const at::Tensor& adapter : model.adapters()) adam.Add(adapter, 1);
  const TrainingState state =
      Train({.doing = "training adapters",
             .advice = "lower preprocessing.lora.learning_rate or check the corpus",
             .loss = "lm_loss",
             .steps = options.steps,
             .progress_of_step = PassSteps(std::ssize(blocks)),
             .adam = std::move(adam),
             .rate_at = [&](int64_t step) { return RateAt(options, step); },
             .gradients_at =
                 [&](int64_t step, const StepShare& done) {
                   TrainingGradients gradients =
                       model.Step(step, order.At(step, options.accumulation), done);
                   Clip(gradients.tensors, options.clip_norm);
                   return gradients;
                 }},
            store, progress);
  return {state.loss_first, state.loss_last, state.retries, model.Merge()};
}

int64_t LoraBytes(const LoraOptions& options, const Architecture& architecture,
                  const ModelConfig& config, int64_t length, const at::Device& device) {
  // A value, how it began, two moments; a share's gradients, of all and of the windows in work.
  constexpr int64_t kFloatsAnEntry = 4, kFloatsAnEntryOfAShare = 2;
  // A linear's input, what dropout leaves of it and its zeros and ones; hidden
  // states, normalised ones and sums.
  constexpr int64_t kInputs = 3, kHidden = 6;
  constexpr int64_t kLogitTensors = 2;
  const int64_t shares = Shares(device, options.accumulation);
  const int64_t tokens = std::min(options.accumulation, shares * WindowsPerBatch(length)) * length;
  int64_t weights = 0, entries = 0;
  int64_t kept = kHidden * config.hidden_size + config.num_heads * length;  // of a token
  for (const LinearSpec& linear : architecture.linears) {
    const LinearShape shape = ShapeOf(config, linear.role);
    weights += shape.out * shape.in;
    kept += kInputs * shape.in + shape.out;
    if (!Adapts(options, linear.role)) continue;
    entries += RankOf(options) * (shape.out + shape.in);
    kept += RankOf(options);
  }
  const int64_t head = config.vocab_size * config.hidden_size;
  const int64_t adapters =
      config.num_layers * entries * (kFloatsAnEntry + kFloatsAnEntryOfAShare * shares);
  const int64_t inputs = tokens * config.hidden_size * (config.num_layers + 1);
  const int64_t logits = kLogitTensors * std::min(kMaxLogits * shares, tokens * config.vocab_size);
  return static_cast<int64_t>(sizeof(float)) *
         (config.num_layers * weights + head + adapters + inputs + tokens * kept + logits);
}

void CheckLora(const LoraOptions& options, const Architecture& architecture,
               const ModelConfig& config) {
  const LinearSpec* narrowest = nullptr;
  int64_t most = 0;
  for (const LinearSpec& linear : architecture.linears) {
    if (!Adapts(options, linear.role)) continue;
    const LinearShape shape = ShapeOf(config, linear.role);
    const int64_t side = std::min(shape.out, shape.in);
    if (narrowest != nullptr && side >= most) continue;
    narrowest = &linear;
    most = side;
  }
  if (narrowest == nullptr || options.rank <= most) return;
  const LinearShape shape = ShapeOf(config, narrowest->role);
  throw UserError(
      "INVALID_SPEC",
      StrCat("preprocessing.lora.rank: wanted at most ", most, ", a side of ", narrowest->name,
             " [", shape.out, ", ", shape.in, "], got ", options.rank, "; 0 is 64 in every linear"),
      {{"field", "preprocessing.lora.rank"}});
}

}  // namespace quantry::engine
