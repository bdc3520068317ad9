#include "worker/engine/methods/gptq/hessian.h"

#include <algorithm>

#include "worker/engine/base/non_finite.h"
#include "worker/engine/methods/awq/inputs.h"
#include "worker/engine/methods/batches.h"

namespace quantry::engine {
namespace {

constexpr double kMaxDamping = 1.0;
constexpr double kDampingStep = 10.0;

void CheckFinite(const Block& block, int source, const at::Tensor& hessian) {
  if (AllFinite(hessian)) return;
  throw NonFiniteLoss(block.index, "inputs of " + block.linears[source].name,
                      "their second moments are not finite: activations overflow in this block; "
                      "check the checkpoint's weights and the calibration text");
}

// The factor in the matrix's own precision; undefined where it is not positive
// definite. With J the flip of both axes and J H J = L L^T, the inverse is
// (J L^-1 J)^T (J L^-1 J): one factorization, and H is never inverted itself.
at::Tensor TryFactor(const at::Tensor& damped) {
  const auto [lower, info] = at::linalg_cholesky_ex(damped.flip({0, 1}));
  if (info.item<int>() != 0) return {};
  const at::Tensor identity = at::eye(damped.size(0), damped.options());
  const at::Tensor inverse =
      at::linalg_solve_triangular(lower, identity, /*upper=*/false).flip({0, 1});
  if (!AllFinite(inverse)) return {};
  return inverse.to(at::kFloat).contiguous();
}

}  // namespace

std::map<int, at::Tensor> CollectHessians(const BlockTask& task, const Block& block,
                                          const std::set<int>& sources, ProgressSink& progress) {
  const StreamShape stream{task.x_q.size(0), task.x_q.size(1)};
  const int workers = BatchWorkers(*block.config, stream, task.device);
  // One sum a worker, so that the result does not depend on timing.
  std::map<int, std::vector<at::Tensor>> sums;
  for (const int source : sources) sums[source].resize(workers);
  ForEachBatch(stream, workers, [&](int worker, const Batch& batch) {
    const at::Tensor x = task.x_q.slice(0, batch.first, batch.last).to(task.device);
    for (const auto& [source, input] : CaptureInputs(block, task.rope, x)) {
      if (sources.count(source) == 0) continue;
      const at::Tensor rows = input.reshape({-1, input.size(-1)});
      at::Tensor& sum = sums.at(source)[worker];
      sum = sum.defined() ? sum.addmm_(rows.t(), rows) : at::mm(rows.t(), rows);
    }
    progress.Advance(1, "collecting second moments");
  });
  std::map<int, at::Tensor> hessians;
  for (auto& [source, parts] : sums) {
    at::Tensor& hessian = hessians[source];
    for (const at::Tensor& part : parts) {
      if (part.defined()) hessian = hessian.defined() ? hessian.add_(part) : part;
    }
    hessian.mul_(2.0 / static_cast<double>(stream.windows));
    CheckFinite(block, source, hessian);
  }
  return hessians;
}

InverseFactor FactorInverse(const at::Tensor& hessian, double damping) {
  const double mean = hessian.diagonal().mean().item<double>();
  for (double share = damping;; share = std::min(share * kDampingStep, kMaxDamping)) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      at::Tensor damped = hessian.to(dtype, /*non_blocking=*/false, /*copy=*/true);
      damped.diagonal().add_(share * mean);
      if (const at::Tensor upper = TryFactor(damped); upper.defined()) return {upper, share};
    }
    if (share >= kMaxDamping) return {};
  }
}

int64_t MomentBytes(const Architecture& architecture, const ModelConfig& config, int workers,
                    int kept) {
  // The damped copy, its factors and the copies in another order.
  constexpr int64_t kFactorizing = 8;
  std::map<int, int64_t> bytes;  // by source
  for (size_t i = 0; i < architecture.linears.size(); ++i) {
    const int64_t in = ShapeOf(config, architecture.linears[i].role).in;
    bytes[InputSource(architecture, static_cast<int>(i))] =
        in * in * static_cast<int64_t>(sizeof(float));
  }
  int64_t sum = 0;
  int64_t largest = 0;
  for (const auto& [source, size] : bytes) {
    sum += size;
    largest = std::max(largest, size);
  }
  return std::max(workers, kept) * sum + kFactorizing * largest;
}

}  // namespace quantry::engine
