#include "worker/engine/nn/hadamard_factor.h"

#include <array>
#include <optional>
#include <vector>

namespace quantry::engine {
namespace {

// Prime p and exponent e with p^e = q.
struct PrimePower {
  int64_t prime = 0;
  int exponent = 0;
};

std::optional<PrimePower> AsPrimePower(int64_t q) {
  if (q < 2) return std::nullopt;
  int64_t prime = q;
  for (int64_t d = 2; d * d <= q; ++d) {
    if (q % d == 0) {
      prime = d;
      break;
    }
  }
  int exponent = 0;
  for (int64_t rest = q; rest > 1; rest /= prime) {
    if (rest % prime != 0) return std::nullopt;
    ++exponent;
  }
  return PrimePower{prime, exponent};
}

// GF(p^e), elements 0 .. p^e - 1 as base-p digits of a polynomial in x, modulo a
// monic irreducible one found by trial.
class Field {
 public:
  explicit Field(const PrimePower& order) : p_(order.prime), degree_(order.exponent) {
    for (int i = 0; i < degree_; ++i) size_ *= p_;
    if (degree_ > 1) FindModulus();
  }

  int64_t size() const { return size_; }

  int64_t Subtract(int64_t a, int64_t b) const {
    std::vector<int64_t> x = Digits(a), y = Digits(b);
    for (int i = 0; i < degree_; ++i) x[i] = (x[i] - y[i] + p_) % p_;
    return Number(x);
  }

  // chi(a): 0, 1 for squares, -1 for the others; entry a.
  std::vector<int> QuadraticCharacter() const {
    std::vector<int> chi(size_, -1);
    chi[0] = 0;
    for (int64_t a = 1; a < size_; ++a) chi[Multiply(a, a)] = 1;
    return chi;
  }

 private:
  std::vector<int64_t> Digits(int64_t a) const {
    std::vector<int64_t> digits(degree_);
    for (int64_t& digit : digits) {
      digit = a % p_;
      a /= p_;
    }
    return digits;
  }
  int64_t Number(const std::vector<int64_t>& digits) const {
    int64_t a = 0;
    for (int i = degree_ - 1; i >= 0; --i) a = a * p_ + digits[i];
    return a;
  }

  int64_t Multiply(int64_t a, int64_t b) const {
    const std::vector<int64_t> x = Digits(a), y = Digits(b);
    std::vector<int64_t> product(2 * degree_ - 1, 0);
    for (int i = 0; i < degree_; ++i) {
      for (int j = 0; j < degree_; ++j) product[i + j] = (product[i + j] + x[i] * y[j]) % p_;
    }
    for (int k = 2 * degree_ - 2; k >= degree_; --k) {
      for (int i = 0; i < degree_; ++i) {
        product[k - degree_ + i] =
            (product[k - degree_ + i] + (p_ - modulus_[i]) * product[k]) % p_;
      }
    }
    product.resize(degree_);
    return Number(product);
  }

  // The modulus is irreducible when the ring has no divisors of zero.
  void FindModulus() {
    for (int64_t tail = 1; tail < size_; ++tail) {
      modulus_ = Digits(tail);
      if (IsField()) return;
    }
  }
  bool IsField() const {
    for (int64_t a = p_; a < size_; ++a) {
      for (int64_t b = a; b < size_; ++b) {
        if (Multiply(a, b) == 0) return false;
      }
    }
    return true;
  }

  int64_t p_;
  int degree_;
  int64_t size_ = 1;
  std::vector<int64_t> modulus_;  // x^degree = -(modulus)
};

// [q, q] of chi(i - j).
at::Tensor JacobsthalMatrix(const PrimePower& order) {
  const Field field(order);
  const std::vector<int> chi = field.QuadraticCharacter();
  at::Tensor matrix = at::empty({field.size(), field.size()}, at::kDouble);
  auto* values = matrix.mutable_data_ptr<double>();
  for (int64_t i = 0; i < field.size(); ++i) {
    for (int64_t j = 0; j < field.size(); ++j) *values++ = chi[field.Subtract(i, j)];
  }
  return matrix;
}

// The Jacobsthal matrix with a first row of +1 and a first column of `corner`.
at::Tensor Bordered(const at::Tensor& jacobsthal, double corner) {
  const int64_t n = jacobsthal.size(0) + 1;
  at::Tensor matrix = at::zeros({n, n}, at::kDouble);
  matrix.narrow(0, 1, n - 1).narrow(1, 1, n - 1).copy_(jacobsthal);
  matrix.select(0, 0).narrow(0, 1, n - 1).fill_(1.0);
  matrix.select(1, 0).narrow(0, 1, n - 1).fill_(corner);
  return matrix;
}

at::Tensor Signs(std::initializer_list<double> values) {
  return at::tensor(std::vector<double>(values), at::kDouble).view({2, 2});
}

// Four symmetric circulant matrices with A^2 + B^2 + C^2 + D^2 = 4n I, n = 43,
// each constant on the cosets g^i H, i = 0 .. 6, of the subgroup H of order 6:
// bit i of a mask says that coset i is -1. Found by search.
at::Tensor Williamson172() {
  constexpr int64_t kOrder = 43, kGenerator = 3, kCosets = 7;
  constexpr std::array<int, 4> kMasks = {7, 25, 44, 77};
  std::array<at::Tensor, 4> parts;
  for (size_t m = 0; m < parts.size(); ++m) {
    std::vector<double> first(kOrder, 1.0);
    int64_t power = 1;
    for (int64_t i = 0; i < kOrder - 1; ++i) {
      if (((kMasks[m] >> (i % kCosets)) & 1) != 0) first[power] = -1.0;
      power = power * kGenerator % kOrder;
    }
    const at::Tensor rows = at::arange(kOrder, at::kLong);
    const at::Tensor index = (rows.unsqueeze(0) - rows.unsqueeze(1)).remainder(kOrder);
    parts[m] = at::tensor(first, at::kDouble).index_select(0, index.view(-1)).view(index.sizes());
  }
  const auto& [a, b, c, d] = parts;
  return at::cat({at::cat({a, b, c, d}, 1), at::cat({b.neg(), a, d.neg(), c}, 1),
                  at::cat({c.neg(), d, a, b.neg()}, 1), at::cat({d.neg(), c.neg(), b, a}, 1)});
}

}  // namespace

HadamardFactor MakeHadamardFactor(int64_t order) {
  if (order == 1) return {at::ones({1, 1}, at::kDouble), "sylvester"};
  if (order == 2) return {Signs({1, 1, 1, -1}), "sylvester"};
  if (order % 4 != 0) return {};
  if (const auto q = AsPrimePower(order - 1); q && (order - 1) % 4 == 3) {
    at::Tensor skew = Bordered(JacobsthalMatrix(*q), -1.0);
    skew.diagonal().add_(1.0);
    return {skew, "paley-1"};
  }
  if (const auto q = AsPrimePower(order / 2 - 1); q && (order / 2 - 1) % 4 == 1) {
    const at::Tensor conference = Bordered(JacobsthalMatrix(*q), 1.0);
    const at::Tensor identity = at::eye(order / 2, at::kDouble);
    return {at::kron(conference, Signs({1, 1, 1, -1})) + at::kron(identity, Signs({1, -1, -1, -1})),
            "paley-2"};
  }
  if (order == 172) return {Williamson172(), "williamson"};
  return {};
}

}  // namespace quantry::engine
