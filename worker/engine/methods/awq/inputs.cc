#include "worker/engine/methods/awq/inputs.h"

#include <algorithm>

#include "worker/engine/methods/batches.h"

namespace quantry::engine {
namespace {

constexpr int64_t kSampledTokens = 512;

// Adds one batch x [tokens, in]; `first_token` is its place in the stream.
class Accumulator {
 public:
  Accumulator(bool gram, int64_t tokens)
      : with_gram_(gram), tokens_(tokens), stride_(std::max<int64_t>(1, tokens / kSampledTokens)) {}

  void Add(const at::Tensor& x, int64_t first_token) {
    at::Tensor sum = x.abs().sum(0).to(at::kDouble);
    sum_abs_ = sum_abs_.defined() ? sum_abs_.add_(sum) : sum;
    if (with_gram_) {
      gram_ = gram_.defined() ? gram_.addmm_(x.t(), x) : at::mm(x.t(), x);
    }
    const int64_t skip = (stride_ - first_token % stride_) % stride_;
    if (skip < x.size(0)) samples_.push_back(x.slice(0, skip, x.size(0), stride_).clone());
  }

  InputStatistics Finish() const {
    return {(sum_abs_ / static_cast<double>(tokens_)).to(at::kFloat), gram_, at::cat(samples_)};
  }

 private:
  bool with_gram_;
  int64_t tokens_;
  int64_t stride_;
  at::Tensor sum_abs_;
  at::Tensor gram_;
  std::vector<at::Tensor> samples_;
};

}  // namespace

int InputSource(const Architecture& architecture, int index) {
  for (const SmoothingGroup& group : architecture.smoothing_groups) {
    const auto& members = group.linears;
    if (std::find(members.begin(), members.end(), index) != members.end()) {
      return *std::min_element(members.begin(), members.end());
    }
  }
  return index;
}

std::map<int, at::Tensor> CaptureInputs(const Block& block, const RopeTable& rope,
                                        const at::Tensor& x) {
  std::map<int, at::Tensor> inputs;
  block.Forward(x, rope, [&](int index, const at::Tensor& input) {
    if (InputSource(*block.architecture, index) == index) inputs[index] = input;
    return block.Apply(index, input);
  });
  return inputs;
}

std::map<int, InputStatistics> CollectInputs(const BlockTask& task, const std::set<int>& with_gram,
                                             ProgressSink& progress) {
  const int64_t windows = task.x_fp.size(0);
  const int64_t length = task.x_fp.size(1);
  const int64_t step = WindowsPerBatch(length);
  std::map<int, Accumulator> accumulators;
  for (int64_t first = 0; first < windows; first += step) {
    const at::Tensor x = task.x_fp.slice(0, first, std::min(first + step, windows));
    for (const auto& [source, input] : CaptureInputs(task.block, task.rope, x.to(task.device))) {
      accumulators.try_emplace(source, with_gram.count(source) != 0, windows * length)
          .first->second.Add(input.reshape({-1, input.size(-1)}), first * length);
    }
    progress.Advance(1, "collecting inputs");
  }
  std::map<int, InputStatistics> statistics;
  for (const auto& [source, accumulator] : accumulators) {
    statistics[source] = accumulator.Finish();
  }
  return statistics;
}

}  // namespace quantry::engine
