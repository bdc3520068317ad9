#include "worker/engine/methods/ptq161/mixed_linear.h"

#include <gtest/gtest.h>

#include "worker/engine/methods/ptq161/block_loss.h"
#include "worker/engine/methods/ptq161/mask.h"
#include "worker/engine/methods/ptq161/testing.h"

namespace quantry::engine {
namespace {

// The dense formulation, the reference (spec 3.2): the whole W', differentiable
// in alpha, r1 and r2.
at::Tensor DenseWeight(const MixedLinear& linear, const at::Tensor& gain, const at::Tensor& row,
                       const at::Tensor& column) {
  const at::Tensor signs = linear.signs8.to(gain.scalar_type()) * 2 - 1;
  const at::Tensor levels =
      (gain * linear.gain_unit).unsqueeze(1) * signs + linear.mean.unsqueeze(1);
  const at::Tensor binary = at::outer(row, column) * levels;
  const at::Tensor order = at::cat({linear.salient, linear.others}).argsort();
  return at::cat({linear.fixed, binary}, 1).index_select(1, order);
}

// A random linear [n, m] in `dtype`, every third column salient; of two or less, the first.
MixedLinear RandomLinear(int64_t rows, int64_t columns, at::ScalarType dtype) {
  at::manual_seed(3);
  const auto options = at::TensorOptions().dtype(dtype);
  const auto parameter = [&](int64_t size) {
    return Parameter{at::rand({size}, options) + 0.5, at::zeros({size}, options)};
  };
  MixedLinear linear;
  linear.SetSalient(at::arange(columns > 2 ? 1 : 0, columns, 3), columns, at::kCPU);
  linear.SetFixed(at::randn({rows, linear.salient.size(0)}, options));
  linear.mean = at::randn({rows}, options) * 0.3;
  linear.SetSigns(at::randn({rows, linear.others.size(0)}).gt(0).to(at::kByte));
  linear.gain_unit = at::rand({rows}, options) + 0.5;
  linear.bias = at::randn({rows}, options);
  linear.gain = parameter(rows);
  linear.row = parameter(rows);
  linear.column = parameter(linear.others.size(0));
  return linear;
}

at::Tensor Factored(const MixedLinear& linear, const at::Tensor& x) {
  const auto [salient, others] = SplitColumns(x, linear);
  return MixedProduct(linear, salient, others);
}

double RelativeError(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got - wanted).norm() / wanted.norm().clamp_min(1e-30)).item<double>();
}

// Spec 11.3, 8: the factored form is the dense one.
TEST(MixedLinear, Invariant8FactoredEqualsDense) {
  for (const auto& [rows, columns] : {std::pair{7, 13}, {16, 4}, {3, 1}, {3, 2}, {1, 30}}) {
    const MixedLinear linear = RandomLinear(rows, columns, at::kFloat);
    const at::Tensor x = at::randn({11, columns});
    const at::Tensor weight =
        DenseWeight(linear, linear.gain.value, linear.row.value, linear.column.value);
    EXPECT_LT(RelativeError(Factored(linear, x), at::linear(x, weight, linear.bias)), 1e-5);
  }
}

// Spec 3.3 and 11.3, 8: gradients of the dense formulation by autograd, fp64.
TEST(MixedLinear, Invariant8GradientsEqualAutograd) {
  MixedLinear linear = RandomLinear(9, 14, at::kDouble);
  at::Tensor x = at::randn({6, 14}, at::kDouble).requires_grad_();
  const at::Tensor g = at::randn({6, 9}, at::kDouble);
  Factored(linear, x).backward(g);
  const at::Tensor x_grad = x.grad().clone();
  x.mutable_grad() = at::Tensor();
  at::Tensor gain = linear.gain.value.clone().requires_grad_();
  at::Tensor row = linear.row.value.clone().requires_grad_();
  at::Tensor column = linear.column.value.clone().requires_grad_();
  at::linear(x, DenseWeight(linear, gain, row, column), linear.bias).backward(g);
  EXPECT_LT(RelativeError(linear.gain.grad, gain.grad()), 1e-12);
  EXPECT_LT(RelativeError(linear.row.grad, row.grad()), 1e-12);
  EXPECT_LT(RelativeError(linear.column.grad, column.grad()), 1e-12);
  EXPECT_LT(RelativeError(x_grad, x.grad()), 1e-12);
}

// The same by central differences of the factored form itself.
TEST(MixedLinear, Invariant8GradientsEqualDifferences) {
  MixedLinear linear = RandomLinear(5, 9, at::kDouble);
  const at::Tensor x = at::randn({4, 9}, at::kDouble);
  const at::Tensor g = at::randn({4, 5}, at::kDouble);
  Factored(linear, x).backward(g);
  const auto loss = [&] { return (Factored(linear, x) * g).sum().item<double>(); };
  constexpr double kStep = 1e-6;
  for (const Parameter& parameter : {linear.gain, linear.row, linear.column}) {
    at::Tensor value = parameter.value;
    for (int64_t i = 0; i < value.numel(); ++i) {
      at::Tensor one = value[i];
      one.add_(kStep);
      const double above = loss();
      one.sub_(2 * kStep);
      const double below = loss();
      one.add_(kStep);
      EXPECT_NEAR(parameter.grad[i].item<double>(), (above - below) / (2 * kStep), 1e-6);
    }
  }
}

// A whole block: the hook's gradients against autograd through dense weights.
TEST(MixedLinear, BlockGradientsEqualDense) {
  const test::BlockSetting setting("llama", 2, 6);
  std::vector<at::Tensor> salient;
  for (const Linear& linear : setting.block.linears) {
    salient.push_back(at::arange(0, linear.weight.size(1), 4, at::kInt));
  }
  ParameterBuffer buffer(1 << 14, at::kCPU);
  const std::vector<MixedLinear> linears = MakeMixedLinears(setting.block, {}, salient, buffer);
  const at::Tensor g = at::randn(setting.x.sizes());
  const at::Tensor got =
      setting.block.Forward(setting.x, setting.rope, MixedForward(setting.block, linears));
  got.backward(g);
  std::vector<std::array<at::Tensor, 3>> leaves;
  for (const MixedLinear& linear : linears) {
    leaves.push_back({linear.gain.value.clone().requires_grad_(),
                      linear.row.value.clone().requires_grad_(),
                      linear.column.value.clone().requires_grad_()});
  }
  const at::Tensor wanted =
      setting.block.Forward(setting.x, setting.rope, [&](int index, const at::Tensor& x) {
        const auto& [gain, row, column] = leaves[index];
        return at::linear(x, DenseWeight(linears[index], gain, row, column));
      });
  EXPECT_LT(RelativeError(got, wanted), 1e-5);
  wanted.backward(g);
  for (size_t i = 0; i < linears.size(); ++i) {
    EXPECT_LT(RelativeError(linears[i].gain.grad, leaves[i][0].grad()), 1e-4) << linears[i].name;
    EXPECT_LT(RelativeError(linears[i].row.grad, leaves[i][1].grad()), 1e-4) << linears[i].name;
    EXPECT_LT(RelativeError(linears[i].column.grad, leaves[i][2].grad()), 1e-4) << linears[i].name;
  }
}

// Spec 11.2: the whole example, W' at the start.
TEST(MixedLinear, GoldenExample) {
  Block block;
  Linear& from = block.linears.emplace_back();
  from.weight =
      at::tensor({0.3, -1.0, -0.1, 0.5, 0.2, 0.0, 0.4, 0.0, -0.2, -0.6}, at::kFloat).view({2, 5});
  ParameterBuffer buffer(9, at::kCPU);
  const auto linears = MakeMixedLinears(block, {}, {at::tensor({1, 3}, at::kInt)}, buffer);
  const at::Tensor wanted = at::tensor({0.333333, -1.0, -0.066667, 0.5, 0.333333,  //
                                        0.0, 0.4, 0.0, -0.2, -0.6},
                                       at::kFloat)
                                .view({2, 5});
  EXPECT_TRUE(at::allclose(linears[0].Finish().Dequantize(), wanted, 1e-3, 1e-6));
}

// Spec 11.3, 11: the only column is salient, and training finds no gain to move.
TEST(MixedLinear, Invariant11OneColumnTrains) {
  at::manual_seed(6);
  Block block;
  const at::Tensor source = at::tensor({0.7, -1.3, 0.0}, at::kFloat).view({3, 1});
  block.linears.emplace_back().weight = source;
  const at::Tensor salient = SelectSalient({}, at::ones({1}));
  ParameterBuffer buffer(2 * 3 + 1, at::kCPU);
  const auto linears = MakeMixedLinears(block, {}, {salient}, buffer);
  EXPECT_EQ(linears[0].salient.numel(), 1);
  EXPECT_EQ(linears[0].others.numel(), 0);
  const at::Tensor before = buffer.values().clone();
  Adam adam = OptimizerOf(buffer);
  at::Tensor x = at::randn({4, 1}).requires_grad_();
  const at::Tensor target = at::randn({4, 3});
  for (int step = 0; step < 3; ++step) {
    at::Tensor y = Factored(linears[0], x);
    y.backward(TwoTargetLoss(y.detach(), target, target, {}).grad);
    EXPECT_EQ(buffer.grads().abs().max().item<double>(), 0.0);
    adam.Step({buffer.grads()});
  }
  EXPECT_TRUE(at::equal(buffer.values(), before));
  EXPECT_GT(x.grad().abs().min().item<double>(), 0.0);
  const QuantizedLinear stored = linears[0].Finish();
  const at::Tensor steps =
      (stored.Dequantize() - source).abs().div(stored.mixed->scales.unsqueeze(1));
  EXPECT_LE(steps.max().item<double>(), 0.5 + 1e-5);
  EXPECT_EQ(stored.Dequantize()[2].item<double>(), 0.0);
}

// fp16 ends at 65504: row 0's scale, A and C lie beyond it, of row 1 nothing.
TEST(MixedLinear, CountsWhatFp16CannotHold) {
  Block block;
  block.linears.emplace_back().weight =
      at::tensor({3e5, -1e6, 1e5, 5e5, 2e5, 0.0, 0.4, 0.0, -0.2, -0.6}, at::kFloat).view({2, 5});
  ParameterBuffer buffer(9, at::kCPU);
  const auto linears = MakeMixedLinears(block, {}, {at::tensor({1, 3}, at::kInt)}, buffer);
  EXPECT_EQ(linears[0].Clipped(), 3);
  const MixedBinaryWeight stored = *linears[0].Finish().mixed;
  EXPECT_EQ(stored.row_gain[0].item<double>(), 65504.0);
  EXPECT_EQ(stored.row_offset[0].item<double>(), 65504.0);
  EXPECT_EQ(stored.scales[0].item<double>(), 65504.0);
  at::Tensor columns = linears[0].column.value;
  columns[2] = -7e4;
  EXPECT_EQ(linears[0].Clipped(), 4);
  EXPECT_EQ(linears[0].Finish().mixed->column_gain[2].item<double>(), -65504.0);
  block.linears[0].weight = block.linears[0].weight * 1e-3;
  ParameterBuffer other(9, at::kCPU);
  EXPECT_EQ(MakeMixedLinears(block, {}, {at::tensor({1, 3}, at::kInt)}, other)[0].Clipped(), 0);
}

// Spec 11.3, 3 and 12: after rounding to storage W' / r2 has two levels a row
// and stays within 2e-3 of A of what was trained. (A, C and r2 are rounded by
// 2^-11 at most, so within 2^-10 (A + |C|): rows must have means below A.)
TEST(MixedLinear, Invariant3StoredLevelsAreTwo) {
  at::manual_seed(4);
  Block block;
  block.linears.emplace_back().weight = at::randn({24, 240});
  ParameterBuffer buffer(24 * 2 + 240, at::kCPU);
  const auto linears = MakeMixedLinears(block, {}, {at::arange(0, 240, 5, at::kInt)}, buffer);
  at::Tensor values = buffer.values();
  values.mul_(at::rand(values.sizes()) + 0.5);
  const MixedBinaryWeight weight = *linears[0].Finish().mixed;
  const at::Tensor others = weight.Dequantize().index_select(1, weight.OtherColumns());
  const at::Tensor levels = others.to(at::kDouble) / weight.column_gain.to(at::kDouble);
  const at::Tensor trained =
      DenseWeight(linears[0], linears[0].gain.value, linears[0].row.value, linears[0].column.value)
          .index_select(1, linears[0].others);
  for (int64_t i = 0; i < 24; ++i) {
    const double gain = std::abs(weight.row_gain[i].item<double>());
    const double offset = weight.row_offset[i].item<double>();
    EXPECT_LT(std::abs(offset), gain);
    EXPECT_LT(((levels[i] - offset).abs() - gain).abs().max().item<double>(), 1e-6 * gain);
    const at::Tensor scaled = (trained[i] - others[i]) / weight.column_gain;
    EXPECT_LT(scaled.abs().max().item<double>(), 2e-3 * gain);
  }
}

// Spec 11.1: means of rows are subnormal numbers of fp16, whose step is 2^-24, so a level is off
// by half of that at most beside what rounding A takes.
TEST(MixedLinear, OffsetsBelowFp16sNormalNumbersAreNearEnough) {
  at::manual_seed(5);
  Block block;
  at::Tensor weight = at::randn({16, 240}).mul_(0.02);
  weight.sub_(weight.narrow(1, 1, 239).mean(1, true)).add_(at::rand({16, 1}).mul_(4e-5));
  block.linears.emplace_back().weight = weight;
  ParameterBuffer buffer(16 * 2 + 240, at::kCPU);
  const auto linears = MakeMixedLinears(block, {}, {at::tensor({0}, at::kInt)}, buffer);
  const MixedBinaryWeight stored = *linears[0].Finish().mixed;
  const at::Tensor trained =
      DenseWeight(linears[0], linears[0].gain.value, linears[0].row.value, linears[0].column.value)
          .index_select(1, linears[0].others);
  const at::Tensor others = stored.Dequantize().index_select(1, stored.OtherColumns());
  EXPECT_LT(stored.row_offset.abs().max().item<double>(), 6.1e-5);  // 2^-14, the least normal one
  const at::Tensor off = (others - trained).abs().amax(1);
  const at::Tensor allowed = stored.row_gain.abs() * std::exp2(-11) + std::exp2(-25);
  EXPECT_TRUE((off <= allowed * 1.01).all().item<bool>()) << off << allowed;
}

// Spec 11.3, 5; through a whole block: Ptq161Test.Invariant5.
TEST(ParameterBuffer, Invariant5FirstStepIsTheLearningRate) {
  ParameterBuffer buffer(5, at::kCPU);
  const Parameter slow = buffer.Add(at::zeros({2}), 5e-4);
  const Parameter fast = buffer.Add(at::ones({3}), 1e-3);
  at::Tensor grads = buffer.grads();
  grads.copy_(at::tensor({1e-6, -3.0, 0.0, 1e-3, -1e5}, at::kFloat));
  Adam adam = OptimizerOf(buffer);
  adam.Step({buffer.grads()});
  EXPECT_NEAR(slow.value[0].item<double>(), -5e-4, 5e-6);
  EXPECT_NEAR(slow.value[1].item<double>(), 5e-4, 5e-6);
  EXPECT_EQ(fast.value[0].item<double>(), 1.0);  // no gradient, no decay
  EXPECT_NEAR(fast.value[1].item<double>(), 1.0 - 1e-3, 1e-5);
  EXPECT_NEAR(fast.value[2].item<double>(), 1.0 + 1e-3, 1e-5);
}

// Against the recurrence written down in double.
TEST(ParameterBuffer, FollowsTheRecurrence) {
  ParameterBuffer buffer(1, at::kCPU);
  const Parameter parameter = buffer.Add(at::ones({1}), 0.01);
  Adam adam = OptimizerOf(buffer);
  double value = 1, first = 0, second = 0;
  for (int step = 1; step <= 50; ++step) {
    const double grad = std::sin(step) + value;
    at::Tensor grads = buffer.grads();
    grads.fill_(grad);
    adam.Step({buffer.grads()});
    first = 0.9 * first + 0.1 * grad;
    second = 0.999 * second + 0.001 * grad * grad;
    value -= 0.01 * (first / (1 - std::pow(0.9, step))) /
             (std::sqrt(second / (1 - std::pow(0.999, step))) + 1e-8);
    ASSERT_NEAR(parameter.value.item<double>(), value, 1e-5);
  }
}

const BlockLossOptions kLosses[] = {{}, {0.5, 3, true}, {2, 0, false}, {2, 3, false, {6, 1e9}}};

TEST(TwoTargetLoss, ValueAndGradient) {
  at::manual_seed(9);
  for (const BlockLossOptions& options : kLosses) {
    at::Tensor y = at::randn({5, 7}, at::kDouble).requires_grad_();
    const at::Tensor a = at::randn({5, 7}, at::kDouble) + y.detach();
    const at::Tensor b = at::randn({5, 7}, at::kDouble) + y.detach();
    at::Tensor wanted = at::zeros({}, at::kDouble);
    for (const auto& [target, most] :
         {std::pair(a, options.most_energy[0]), std::pair(b, options.most_energy[1])}) {
      const at::Tensor weights = (most / target.square().sum(1, true)).clamp_max(1);
      const at::Tensor cosine = at::cosine_similarity(y, target, 1);
      const at::Tensor term =
          options.token_cosine ? -cosine.abs().log().mean() : -cosine.mean().abs().log();
      wanted = wanted + options.mse_weight * (weights * (y - target).square()).mean() +
               options.cosine_weight * term;
    }
    wanted.backward();
    const BlockLoss got = TwoTargetLoss(y.detach(), a, b, options);
    EXPECT_NEAR(got.total, wanted.item<double>(), 1e-10);
    EXPECT_LT(RelativeError(got.grad, y.grad()), 1e-10);
  }
}

// fp32 on the CPU takes another way than the fp64 above: the same loss, also over several tasks.
TEST(TwoTargetLoss, IsTheSameInBothTypes) {
  at::manual_seed(10);
  for (const BlockLossOptions& options : kLosses) {
    for (const auto& [tokens, width] : {std::pair<int64_t, int64_t>{1, 3}, {67, 21}, {130, 64}}) {
      const at::Tensor y = at::randn({2, tokens, width});
      const at::Tensor a = y + at::randn_like(y), b = y + 0.3 * at::randn_like(y);
      const BlockLoss got = TwoTargetLoss(y, a, b, options);
      const BlockLoss wanted =
          TwoTargetLoss(y.to(at::kDouble), a.to(at::kDouble), b.to(at::kDouble), options);
      EXPECT_NEAR(got.total, wanted.total, 1e-5 * std::abs(wanted.total) + 1e-6);
      EXPECT_EQ(got.turned, wanted.turned);
      EXPECT_EQ(got.grad.sizes(), y.sizes());
      EXPECT_LT(RelativeError(got.grad, wanted.grad), 1e-5);
    }
  }
}

// Spec 11.1: cosines that vanish or turn are counted, of the mean or of tokens.
TEST(TwoTargetLoss, CountsCosinesThatAreNotAboveZero) {
  const at::Tensor y = at::tensor({1.0, 0.0, 1.0, 0.0, 1.0, 0.0}, at::kFloat).view({3, 2});
  const at::Tensor across = at::tensor({0.0, 1.0, 0.0, 1.0, 0.0, 1.0}, at::kFloat).view({3, 2});
  const at::Tensor one_turned =
      at::tensor({-1.0, 0.0, 1.0, 0.0, 1.0, 0.0}, at::kFloat).view({3, 2});
  BlockLossOptions tokens;
  tokens.token_cosine = true;
  struct Turned {
    at::Tensor target;
    int64_t of_means, of_tokens;
  };
  const std::vector<Turned> cases = {
      {y, 0, 0}, {across, 1, 3}, {y.neg(), 1, 3}, {one_turned, 0, 1}};
  for (const auto& [target, of_means, of_tokens] : cases) {
    EXPECT_EQ(TwoTargetLoss(y, target, y, {}).turned, of_means);
    EXPECT_EQ(TwoTargetLoss(y, y, target, tokens).turned, of_tokens);
  }
  BlockLossOptions without;
  without.cosine_weight = 0;
  EXPECT_EQ(TwoTargetLoss(y, across, across, without).turned, 0);
}

// Spec 11.1: the logarithm is bounded where the cosine vanishes or turns.
TEST(TwoTargetLoss, StaysFiniteWithoutAnyCosine) {
  const at::Tensor y = at::tensor({1.0, 0.0}, at::kFloat).view({1, 2});
  const at::Tensor target = at::tensor({0.0, 1.0}, at::kFloat).view({1, 2});
  for (const at::Tensor& out : {y, at::zeros({1, 2})}) {
    const BlockLoss loss = TwoTargetLoss(out, target, target, {});
    EXPECT_TRUE(std::isfinite(loss.total));
    EXPECT_TRUE(at::isfinite(loss.grad).all().item<bool>());
  }
}

}  // namespace
}  // namespace quantry::engine
