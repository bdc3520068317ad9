#include "worker/engine/nn/hadamard.h"

#include <cmath>
#include <map>
#include <mutex>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/nn/hadamard_factor.h"

namespace quantry::engine {
namespace {

// Larger factors cost as much as a linear of their size.
constexpr int64_t kMaxOrder = 2048;

// Smallest order for n; the matrix is undefined when there is none.
HadamardFactor SmallestFactor(int64_t n) {
  int64_t odd = n;
  while (odd % 2 == 0) odd /= 2;
  for (int64_t order = odd; order <= std::min(n, kMaxOrder); order *= 2) {
    if (n % order != 0) break;
    HadamardFactor factor = MakeHadamardFactor(order);
    if (factor.matrix.defined()) return factor;
  }
  return {};
}

void CheckOrthogonal(const HadamardFactor& factor) {
  const auto order = static_cast<double>(factor.matrix.size(0));
  const at::Tensor product = at::mm(factor.matrix, factor.matrix.t());
  if (at::equal(product, at::eye(factor.matrix.size(0), at::kDouble) * order)) return;
  throw EngineError(
      FailureClass::kBug, "INTERNAL",
      StrCat("the ", factor.construction, " matrix of order ", order, " is no Hadamard matrix"));
}

// Sylvester's transform, not scaled, along the last dimension of x [..., n].
at::Tensor Sylvester(const at::Tensor& x) {
  at::Tensor y = x;
  const int64_t n = x.size(-1);
  for (int64_t half = 1; half < n; half *= 2) {
    const at::Tensor pairs = y.reshape({-1, n / (2 * half), 2, half});
    const at::Tensor a = pairs.select(2, 0), b = pairs.select(2, 1);
    y = at::stack({a + b, a - b}, 2);
  }
  return y.reshape(x.sizes());
}

}  // namespace

std::optional<Hadamard> Hadamard::OfSize(int64_t n) {
  static std::mutex mutex;
  static std::map<int64_t, HadamardFactor> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(n);
  if (found == known.end()) {
    HadamardFactor factor = n >= 1 ? SmallestFactor(n) : HadamardFactor{};
    if (factor.matrix.defined()) CheckOrthogonal(factor);
    found = known.emplace(n, std::move(factor)).first;
  }
  if (!found->second.matrix.defined()) return std::nullopt;
  Hadamard result;
  result.size_ = n;
  result.factor_ = found->second.matrix;
  result.construction_ = found->second.construction;
  return result;
}

at::Tensor Hadamard::Transform(const at::Tensor& x, const at::Tensor& factor) const {
  const int64_t rest = size_ / order();
  at::Tensor y = Sylvester(x.reshape({-1, order(), rest}));
  // As one product with the vectors as rows.
  if (order() > 1) {
    y = at::matmul(y.transpose(1, 2), factor.t().to(y.options())).transpose(1, 2);
  }
  return (y * (1.0 / std::sqrt(static_cast<double>(size_)))).reshape(x.sizes());
}

at::Tensor Hadamard::Apply(const at::Tensor& x) const { return Transform(x, factor_); }

// Sylvester's matrix is symmetric.
at::Tensor Hadamard::ApplyTransposed(const at::Tensor& x) const {
  return Transform(x, factor_.t());
}

}  // namespace quantry::engine
