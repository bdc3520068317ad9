#include "worker/engine/methods/value_method.h"

#include <gtest/gtest.h>

#include "worker/engine/methods/billm/billm.h"
#include "worker/engine/methods/block_weights.h"
#include "worker/engine/methods/pbllm/pbllm.h"
#include "worker/engine/methods/ptq161/testing.h"
#include "worker/engine/quant/grid.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

struct ValueCase {
  std::string name;
  std::shared_ptr<const Method> method;
};

class ValueMethodTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::vector<ValueCase> Cases() const {
    return {{"billm", std::make_shared<Billm>(BillmOptions())},
            {"pbllm", std::make_shared<Pbllm>(PbllmOptions())}};
  }
};

INSTANTIATE_TEST_SUITE_P(All, ValueMethodTest, ::testing::Values("llama", "opt"),
                         [](const auto& name) { return std::string(name.param); });

TEST_P(ValueMethodTest, WritesValuesAndTellsItsSteps) {
  const test::BlockSetting setting(GetParam());
  const StreamShape stream{setting.x.size(0), setting.x.size(1)};
  for (const ValueCase& c : Cases()) {
    test::CountingSink sink;
    const MethodResult result = c.method->Quantize(setting.Task(), sink);
    EXPECT_EQ(sink.steps(), c.method->Steps(setting.checkpoint->architecture(),
                                            setting.checkpoint->config(), stream))
        << c.name;
    ASSERT_EQ(result.block.linears.size(), setting.block.linears.size());
    for (size_t i = 0; i < result.block.linears.size(); ++i) {
      const QuantizedLinear& linear = result.block.linears[i];
      EXPECT_EQ(linear.kind(), WeightKind::kValues);
      EXPECT_EQ(linear.values.scalar_type(), at::kBFloat16);
      EXPECT_EQ(linear.values.sizes(), setting.block.linears[i].weight.sizes());
      EXPECT_GT(c.method->ValueBits({linear.rows(), linear.columns()}), 0);
    }
    test::CountingSink again;
    const MethodResult second = c.method->Quantize(setting.Task(), again);
    for (size_t i = 0; i < result.block.linears.size(); ++i) {
      EXPECT_TRUE(result.block.linears[i].values.equal(second.block.linears[i].values));
    }
  }
}

// Both stand for better weights than 2 bits a row rounded to nearest, whose
// loss the reports compare with.
TEST_P(ValueMethodTest, BeatsTwoBitRounding) {
  const test::BlockSetting setting(GetParam(), 32);
  const auto loss = [&](const Block& block) {
    return (block.Forward(setting.x, setting.rope) - setting.block.Forward(setting.x, setting.rope))
        .square()
        .mean()
        .item<double>();
  };
  const double nearest = loss(RoundToNearest(setting.block, {2, -1, false}, at::kHalf));
  for (const ValueCase& c : Cases()) {
    test::CountingSink sink;
    EXPECT_LT(loss(Rebuild(setting.block, c.method->Quantize(setting.Task(), sink).block)), nearest)
        << c.name;
  }
}

// Second moments that fp32 holds, but not the squares of what follows from them.
TEST_P(ValueMethodTest, HugeActivationsAreQuantizedToo) {
  test::BlockSetting setting(GetParam());
  const int norm = setting.block.architecture->NormIndex(NormRole::kAttentionInput);
  setting.block.norms.at(norm).weight = setting.block.norms.at(norm).weight * 1e12;
  for (const ValueCase& c : Cases()) {
    test::CountingSink sink;
    const MethodResult result = c.method->Quantize(setting.Task(), sink);
    for (const QuantizedLinear& linear : result.block.linears) {
      EXPECT_TRUE(linear.values.isfinite().all().item<bool>()) << c.name << " " << linear.name;
    }
  }
}

TEST_P(ValueMethodTest, ValuesThatAreNotFiniteAreToldOf) {
  const test::BlockSetting setting(GetParam());
  const std::string& last = setting.block.linears.back().name;
  int64_t left = static_cast<int64_t>(setting.block.linears.size());
  const ToValues broken = [&](const at::Tensor& weight, const at::Tensor&, auto*) {
    return --left == 0 ? weight / 0.0 : weight;
  };
  test::CountingSink sink;
  const EngineError error = test::ErrorOf([&] { QuantizeValues(setting.Task(), broken, sink); });
  EXPECT_EQ(error.reason, "NON_FINITE_LOSS");
  EXPECT_TRUE(test::Mentions(error, "block 0, values of " + last)) << error.what();
}

TEST_P(ValueMethodTest, ColumnsThatAreNeverActiveBecomeZero) {
  test::BlockSetting setting(GetParam());
  const int64_t hidden = setting.x.size(2);
  // An input channel of the norm that is always 0 stays 0 behind RMSNorm.
  if (std::string(GetParam()) == "opt") GTEST_SKIP() << "LayerNorm shifts it";
  setting.x.select(2, hidden - 1).zero_();
  test::CountingSink sink;
  const MethodResult result = Pbllm(PbllmOptions()).Quantize(setting.Task(), sink);
  const at::Tensor column = result.block.linears[0].values.select(1, hidden - 1).to(at::kFloat);
  EXPECT_LT(column.abs().max().item<float>(),
            setting.block.linears[0].weight.abs().max().item<float>());
  EXPECT_TRUE(at::isfinite(column).all().item<bool>());
}

}  // namespace
}  // namespace quantry::engine
