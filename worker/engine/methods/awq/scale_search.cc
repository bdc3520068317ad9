#include "worker/engine/methods/awq/scale_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/methods/batches.h"
#include "worker/engine/quant/grid.h"

namespace quantry::engine {
namespace {

constexpr double kSmallestScale = 1e-4;

// The weight quantized with its columns scaled by c.
at::Tensor ScaledWeight(const BlockTask& task, const at::Tensor& weight, const at::Tensor& c) {
  return FakeQuantize(weight * c, task.grid, task.scale_dtype);
}

// What that stands for on unscaled inputs.
at::Tensor TrialWeight(const BlockTask& task, const at::Tensor& weight, const at::Tensor& c) {
  return ScaledWeight(task, weight, c).div_(c);
}

// Output of the group's compared module.
at::Tensor ModuleOutput(const BlockTask& task, const SmoothingGroup& group, const at::Tensor& input,
                        const LinearForward& linear) {
  const int index = group.linears.at(0);
  switch (group.compared) {
    case ComparedModule::kAttention:
      return task.block.Attention(input, task.rope, linear);
    case ComparedModule::kMlp:
      return task.block.Mlp(input, linear);
    case ComparedModule::kLinear:
      break;
  }
  return linear ? linear(index, input) : task.block.Apply(index, input);
}

// Searches one group.
class Search {
 public:
  // `compared`: what ScoreBatch will see.
  Search(const BlockTask& task, const SmoothingGroup& group, const InputStatistics& inputs,
         int points, const StreamShape& compared)
      : task_(task),
        group_(group),
        inputs_(inputs),
        points_(points),
        tokens_(compared.windows * compared.length) {
    for (int n = 0; n < points; ++n)
      candidates_.push_back(CandidateScale(inputs.mean_abs, Ratio(n)));
    losses_ = at::zeros({Batches(compared), points}, inputs.mean_abs.options().dtype(at::kDouble));
  }

  bool uses_gram() const { return UsesGram(group_, task_.activations); }
  int source() const { return *std::min_element(group_.linears.begin(), group_.linears.end()); }

  // Whole search through the Gram matrix of the linears' inputs.
  void ScoreByGram(ProgressSink& progress) {
    for (int n = 0; n < points_; ++n) {
      for (const int index : group_.linears) {
        const at::Tensor& weight = task_.block.linears[index].weight;
        const at::Tensor error = TrialWeight(task_, weight, candidates_[n]).sub_(weight);
        losses_[0][n] += at::mm(error, inputs_.gram).mul_(error).sum();
      }
      progress.Advance(1, "searching scales");
    }
  }

  // One batch of the module's inputs [windows, length, in]. Batches may run
  // side by side.
  void ScoreBatch(int64_t batch, const at::Tensor& input, ProgressSink& progress) {
    const at::Tensor wanted = ModuleOutput(task_, group_, input, {});
    for (int n = 0; n < points_; ++n) {
      const at::Tensor got = ModuleOutput(task_, group_, input, Trial(n));
      losses_[batch][n] = got.sub(wanted).square_().sum();
      progress.Advance(steps_a_score(), "searching scales");
    }
  }

  // Steps that ScoreBatch does not report: a group that could use its Gram
  // matrix counts `points` however it is searched.
  int64_t unreported() const { return steps_a_score() == 0 ? points_ : 0; }

  GroupScale Finish() const {
    GroupScale best{group_, {}, 0, {}};
    const at::Tensor losses = losses_.sum(0).div_(static_cast<double>(Outputs())).cpu();
    double lowest = std::numeric_limits<double>::infinity();
    for (int n = 0; n < points_; ++n) {
      const auto loss = losses[n].item<double>();
      best.losses.push_back(loss);
      if (!(loss < lowest)) continue;
      lowest = loss;
      best.ratio = Ratio(n);
      best.scale = candidates_[n];
    }
    if (!best.scale.defined()) {
      throw NonFiniteLoss(task_.block.index, "AWQ scale search of " + group_.previous,
                          "every candidate's loss is not finite; check the weights and the "
                          "calibration text, or try method rtn");
    }
    return best;
  }

 private:
  // Numbers the sums of squares run over.
  int64_t Outputs() const {
    if (group_.compared != ComparedModule::kLinear) {
      return tokens_ * task_.block.config->hidden_size;
    }
    int64_t rows = 0;
    for (const int index : group_.linears) rows += task_.block.linears[index].weight.size(0);
    return (uses_gram() ? task_.x_fp.size(0) * task_.x_fp.size(1) : tokens_) * rows;
  }

  int64_t steps_a_score() const { return group_.compared == ComparedModule::kLinear ? 0 : 1; }

  double Ratio(int n) const { return static_cast<double>(n) / points_; }

  // The block's products with candidate n in the group's linears.
  LinearForward Trial(int n) const {
    const bool scaled = task_.activations.enabled();
    std::map<int, at::Tensor> weights;
    for (const int index : group_.linears) {
      const at::Tensor& weight = task_.block.linears[index].weight;
      weights[index] = scaled ? ScaledWeight(task_, weight, candidates_[n])
                              : TrialWeight(task_, weight, candidates_[n]);
    }
    return [this, n, scaled, weights = std::move(weights)](int index, const at::Tensor& x) {
      const auto found = weights.find(index);
      if (found == weights.end()) return task_.block.Apply(index, x);
      const at::Tensor input =
          scaled ? FakeQuantizeActivations(x / candidates_[n], task_.activations.bits) : x;
      return at::linear(input, found->second, task_.block.linears[index].bias);
    };
  }

  const BlockTask& task_;
  const SmoothingGroup& group_;
  const InputStatistics& inputs_;
  int points_;
  int64_t tokens_;
  std::vector<at::Tensor> candidates_;
  at::Tensor losses_;  // [batches, points], sums of squared errors
};

// `count` of the windows of x [windows, length, hidden], equally far apart; x itself where it
// has no more.
at::Tensor SpreadWindows(const at::Tensor& x, int64_t count) {
  if (count >= x.size(0)) return x;
  std::vector<int64_t> chosen(count);
  for (int64_t i = 0; i < count; ++i) chosen[i] = i * x.size(0) / count;
  return x.index_select(0, at::tensor(chosen, at::kLong));
}

}  // namespace

at::Tensor CandidateScale(const at::Tensor& mean_abs, double ratio) {
  at::Tensor scale = mean_abs.pow(ratio).clamp_min_(kSmallestScale);
  return scale.div_((scale.max() * scale.min()).sqrt_());
}

bool UsesGram(const SmoothingGroup& group, const ActivationSpec& activations) {
  return group.compared == ComparedModule::kLinear && !activations.enabled();
}

std::vector<GroupScale> SearchScales(const BlockTask& task,
                                     const std::map<int, InputStatistics>& inputs, int points,
                                     int64_t windows, ProgressSink& progress) {
  const at::Tensor compared = SpreadWindows(task.x_fp, windows);
  const StreamShape stream{compared.size(0), compared.size(1)};
  const std::vector<SmoothingGroup> groups =
      UsableSmoothingGroups(*task.block.architecture, *task.block.config);
  std::vector<Search> searches;
  searches.reserve(groups.size());
  std::vector<Search*> by_batch;
  for (const SmoothingGroup& group : groups) {
    const int source = InputSource(*task.block.architecture, group.linears.at(0));
    Search& search = searches.emplace_back(task, group, inputs.at(source), points, stream);
    if (search.uses_gram()) {
      search.ScoreByGram(progress);
    } else {
      by_batch.push_back(&search);
    }
  }
  const int workers = BatchWorkers(*task.block.config, stream, task.device);
  const auto score = [&](int, const Batch& batch) {
    const at::Tensor x = compared.slice(0, batch.first, batch.last).to(task.device);
    const auto captured = CaptureInputs(task.block, task.rope, x);
    for (Search* search : by_batch) {
      search->ScoreBatch(batch.index, captured.at(search->source()), progress);
    }
  };
  if (!by_batch.empty()) ForEachBatch(stream, workers, score);
  for (const Search* search : by_batch) {
    if (search->unreported() > 0) progress.Advance(search->unreported(), "searching scales");
  }
  std::vector<GroupScale> scales;
  for (const Search& search : searches) scales.push_back(search.Finish());
  return scales;
}

int64_t ScaleSearchSteps(const Architecture& architecture, const ModelConfig& config,
                         const StreamShape& stream, int points) {
  int64_t steps = 0;
  for (const SmoothingGroup& group : UsableSmoothingGroups(architecture, config)) {
    steps += points * (group.compared == ComparedModule::kLinear ? 1 : Batches(stream));
  }
  return steps;
}

}  // namespace quantry::engine
