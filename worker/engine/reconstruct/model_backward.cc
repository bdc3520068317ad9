#include "worker/engine/reconstruct/model_backward.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

namespace quantry::engine {

double BackwardThroughModel(const at::Tensor& embedded, size_t blocks, const ModelPass& pass) {
  std::vector<at::Tensor> inputs;
  at::Tensor hidden = embedded;
  for (size_t index = 0; index < blocks; ++index) {
    const c10::AutoGradMode without_gradients(false);
    inputs.push_back(hidden);
    hidden = pass.forward(index, hidden);
    if (pass.advance) pass.advance();
  }
  at::Tensor slope;
  const double loss = pass.loss(hidden, slope);
  for (size_t index = blocks; index-- > 0;) {
    const at::Tensor leaf = inputs[index].detach().requires_grad_(true);
    {
      const c10::AutoGradMode with_gradients(true);
      pass.forward(index, leaf).backward(slope);
    }
    pass.collect(index);
    slope = leaf.grad();
    inputs[index] = at::Tensor();
    if (pass.advance) pass.advance();
  }
  return loss;
}

double BackwardThroughHead(const OutputHead& head, const at::Tensor& outputs,
                           const HeadChunk& chunk, at::Tensor& slope) {
  const at::Tensor leaf = outputs.detach().requires_grad_(true);
  at::Tensor normed;
  {
    const c10::AutoGradMode with_gradients(true);
    normed = head.Normalize(leaf);
  }
  const c10::AutoGradMode without_gradients(false);
  const at::Tensor rows = normed.detach().reshape({-1, normed.size(-1)});
  at::Tensor row_slopes = at::zeros_like(rows);
  const int64_t step = std::max<int64_t>(1, kMaxLogits / head.vocab_size());
  double sum = 0;
  for (int64_t first = 0; first < rows.size(0); first += step) {
    const int64_t last = std::min(first + step, rows.size(0));
    at::Tensor part = row_slopes.slice(0, first, last);
    sum += chunk(first, last, rows.slice(0, first, last), part);
  }
  normed.backward(row_slopes.view(normed.sizes()));
  slope = leaf.grad();
  return sum;
}

}  // namespace quantry::engine
