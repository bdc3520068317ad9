#include "worker/engine/evaluation/vocabulary_loss.h"

#include <algorithm>
#include <limits>

namespace quantry::engine {
namespace {

// Logits held at once for each chain: 2^20 in fp32 are 4 MiB.
constexpr int64_t kMaxLogits = int64_t{1} << 20;

// What is kept of one chain's logits z while the vocabulary goes by; one entry
// a row (predicted token), fp64 where sums run.
struct Running {
  at::Tensor max;     // fp32, max z so far
  at::Tensor sum;     // sum exp(z - max)
  at::Tensor argmax;  // int64, the first z equal to max
  at::Tensor target;  // fp32, z of the next token

  Running(int64_t rows, const at::TensorOptions& options)
      : max(at::full({rows}, -std::numeric_limits<float>::infinity(), options)),
        sum(at::zeros({rows}, options.dtype(at::kDouble))),
        argmax(at::zeros({rows}, options.dtype(at::kLong))),
        target(at::zeros({rows}, options)) {}

  // Takes logits [rows, count] of vocabulary rows first, first + 1, ...
  // Returns exp(z - max) with the new max, and the factor older sums shrink by.
  std::pair<at::Tensor, at::Tensor> Take(const at::Tensor& z, int64_t first,
                                         const at::Tensor& targets) {
    const auto [chunk_max, chunk_argmax] = z.max(1);
    const at::Tensor larger = chunk_max > max;
    argmax = at::where(larger, chunk_argmax + first, argmax);
    const at::Tensor new_max = at::where(larger, chunk_max, max);
    const at::Tensor shrink = (max - new_max).to(at::kDouble).exp();
    max = new_max;
    const at::Tensor weights = (z - max.unsqueeze(1)).exp_();
    sum = sum * shrink + weights.sum(1, /*keepdim=*/false, at::kDouble);
    const at::Tensor inside = targets.ge(first).logical_and(targets.lt(first + z.size(1)));
    const at::Tensor column = (targets - first).clamp(0, z.size(1) - 1);
    target = at::where(inside, z.gather(1, column.unsqueeze(1)).squeeze(1), target);
    return {weights, shrink};
  }

  at::Tensor LogSumExp() const { return max.to(at::kDouble) + sum.log(); }
  double NegativeLogLikelihood() const {
    return (LogSumExp() - target.to(at::kDouble)).sum().item<double>();
  }
};

}  // namespace

void VocabularyLoss::Add(const at::Tensor& dense, const at::Tensor& quantized,
                         const at::Tensor& ids, LossSums* sums) const {
  const int64_t predicted = ids.size(1) - 1;
  // The last token of a window predicts nothing.
  const auto rows_of = [&](const OutputHead& head, const at::Tensor& hidden) {
    return head.Normalize(hidden.narrow(1, 0, predicted)).reshape({-1, hidden.size(2)});
  };
  const at::Tensor x = rows_of(head_, dense);
  const at::Tensor y = quantized.defined() ? rows_of(quantized_head_, quantized) : at::Tensor();
  const at::Tensor targets = ids.narrow(1, 1, predicted).reshape({-1}).to(x.device());
  const int64_t rows = x.size(0), vocabulary = head_.vocab_size();
  Running p(rows, x.options()), q(rows, x.options());
  at::Tensor difference = at::zeros({rows}, x.options().dtype(at::kDouble));
  const int64_t step = std::clamp<int64_t>(kMaxLogits / rows, 1, vocabulary);
  for (int64_t first = 0; first < vocabulary; first += step) {
    const at::Tensor weights = head_.Rows(first, std::min(step, vocabulary - first));
    const at::Tensor zp = at::linear(x, weights);
    const auto [exp_p, shrink] = p.Take(zp, first, targets);
    if (!y.defined()) continue;
    const at::Tensor zq =
        at::linear(y, same_head_ ? weights : quantized_head_.Rows(first, weights.size(0)));
    q.Take(zq, first, targets);
    // KL = sum_i p_i (zp_i - zq_i) - lse(zp) + lse(zq); its first sum runs here.
    difference = difference * shrink + (exp_p * (zp - zq)).sum(1, /*keepdim=*/false, at::kDouble);
  }
  sums->tokens += rows;
  sums->nll_dense += p.NegativeLogLikelihood();
  if (!y.defined()) return;
  sums->nll_quantized += q.NegativeLogLikelihood();
  sums->kl += (difference / p.sum - p.LogSumExp() + q.LogSumExp()).sum().item<double>();
  sums->same_argmax += p.argmax.eq(q.argmax).sum().item<int64_t>();
}

}  // namespace quantry::engine
