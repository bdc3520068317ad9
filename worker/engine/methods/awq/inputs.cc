#include "worker/engine/methods/awq/inputs.h"

#include <algorithm>

#include "worker/engine/methods/batches.h"

namespace quantry::engine {
namespace {

constexpr int64_t kSampledTokens = 512;

int64_t SampleStride(int64_t tokens) { return std::max<int64_t>(1, tokens / kSampledTokens); }

// What the batches of one source leave behind. Every batch and every worker
// has a place of its own, so that the sums do not depend on timing.
class Accumulator {
 public:
  Accumulator(bool gram, const StreamShape& stream, int workers)
      : with_gram_(gram),
        tokens_(stream.windows * stream.length),
        stride_(SampleStride(tokens_)),
        sums_(Batches(stream)),
        samples_(Batches(stream)),
        grams_(workers) {}

  // x: [tokens, in], whose first token is number `first_token` of the stream.
  void Add(int worker, int64_t batch, const at::Tensor& x, int64_t first_token) {
    sums_[batch] = x.abs().sum(0);
    if (with_gram_) {
      at::Tensor& gram = grams_[worker];
      gram = gram.defined() ? gram.addmm_(x.t(), x) : at::mm(x.t(), x);
    }
    const int64_t skip = (stride_ - first_token % stride_) % stride_;
    samples_[batch] = x.slice(0, std::min(skip, x.size(0)), x.size(0), stride_).clone();
  }

  InputStatistics Finish() const {
    InputStatistics statistics;
    statistics.mean_abs = at::stack(sums_)
                              .sum(0, false, at::kDouble)
                              .div_(static_cast<double>(tokens_))
                              .to(at::kFloat);
    statistics.samples = at::cat(samples_);
    for (const at::Tensor& gram : grams_) {
      if (!gram.defined()) continue;
      statistics.gram = statistics.gram.defined() ? statistics.gram.add_(gram) : gram;
    }
    return statistics;
  }

 private:
  bool with_gram_;
  int64_t tokens_;
  int64_t stride_;
  std::vector<at::Tensor> sums_;
  std::vector<at::Tensor> samples_;
  std::vector<at::Tensor> grams_;
};

}  // namespace

int64_t SampledTokens(const StreamShape& stream) {
  const int64_t tokens = stream.windows * stream.length;
  const int64_t stride = SampleStride(tokens);
  return (tokens + stride - 1) / stride;
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
  const StreamShape stream{task.x_fp.size(0), task.x_fp.size(1)};
  const int workers = BatchWorkers(*task.block.config, stream, task.device);
  std::map<int, Accumulator> accumulators;
  for (size_t i = 0; i < task.block.linears.size(); ++i) {
    const int source = InputSource(*task.block.architecture, static_cast<int>(i));
    accumulators.try_emplace(source, with_gram.count(source) != 0, stream, workers);
  }
  ForEachBatch(stream, workers, [&](int worker, const Batch& batch) {
    const at::Tensor x = task.x_fp.slice(0, batch.first, batch.last).to(task.device);
    for (const auto& [source, input] : CaptureInputs(task.block, task.rope, x)) {
      accumulators.at(source).Add(worker, batch.index, input.reshape({-1, input.size(-1)}),
                                  batch.first * stream.length);
    }
    progress.Advance(1, "collecting inputs");
  });
  std::map<int, InputStatistics> statistics;
  for (const auto& [source, accumulator] : accumulators) {
    statistics[source] = accumulator.Finish();
  }
  return statistics;
}

}  // namespace quantry::engine
