#include "worker/engine/reconstruct/group_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "worker/engine/base/random.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/rectified_sigmoid.h"

namespace quantry::engine {
namespace {

struct Logits {
  std::vector<float> slopes, nu, mean, square, value;

  explicit Logits(size_t count)
      : slopes(count), nu(count), mean(count), square(count), value(count) {
    Random random(5);
    const auto draw = [&](double most) {  // -most .. most
      return static_cast<float>(most * (static_cast<double>(random.Below(2001)) / 1000 - 1));
    };
    for (size_t i = 0; i < count; ++i) {
      nu[i] = draw(4);
      slopes[i] = draw(1);
      mean[i] = draw(0.1);
      square[i] = std::abs(draw(0.1));
    }
  }
  // Of those from `first` on.
  LogitRows From(size_t first) {
    return {&slopes[first], &nu[first], &mean[first], &square[first], &value[first]};
  }
  int64_t count() const { return static_cast<int64_t>(nu.size()); }
};

constexpr LogitStep kStep = {3, -1, 0.02F, 1.25F, 1.5F};

TEST(GroupKernelsTest, AStepOfLogitsIsAdamAlongTheirSlopes) {
  for (const LogitStep& step : {kStep, LogitStep{1, 0, 0.01F, 10, 31.6F}}) {
    const Logits before(103);
    Logits after = before;
    StepLogits(step, after.count(), after.From(0));
    for (size_t i = 0; i < before.nu.size(); ++i) {
      const float g = before.slopes[i] * RectifiedSigmoidSlope(before.nu[i] / step.width);
      float mean = before.mean[i], square = before.square[i];
      const AdamStep adam = {step.mean_correction, step.square_correction};
      const float nu = before.nu[i] - step.rate * adam.Direction(g, mean, square);
      EXPECT_NEAR(after.nu[i], nu, 1e-6) << i;
      EXPECT_NEAR(after.mean[i], mean, 1e-6) << i;
      EXPECT_NEAR(after.square[i], square, 1e-6) << i;
      EXPECT_NEAR(after.value[i], step.width * RectifiedSigmoid(nu / step.width) + step.lowest,
                  2e-6)
          << i;
    }
  }
}

TEST(GroupKernelsTest, ALogitGivesTheSameBitsWhereverItStands) {
  Logits whole(61), parts(61);
  StepLogits(kStep, whole.count(), whole.From(0));
  StepLogits(kStep, 13, parts.From(0));
  StepLogits(kStep, 48, parts.From(13));
  EXPECT_EQ(whole.nu, parts.nu);
  EXPECT_EQ(whole.mean, parts.mean);
  EXPECT_EQ(whole.square, parts.square);
  EXPECT_EQ(whole.value, parts.value);
  std::vector<float> values(61);
  LogitValues(kStep.width, kStep.lowest, 61, whole.nu.data(), values.data());
  EXPECT_EQ(values, whole.value);
}

TEST(GroupKernelsTest, ClampedLogitsStayAndWhatIsNoNumberStaysNone) {
  Logits logits(4);
  logits.nu = {50, -50, 200, 1};
  logits.slopes = {1, 1, 1, std::numeric_limits<float>::quiet_NaN()};
  logits.mean = logits.square = {0, 0, 0, 0};
  StepLogits({1, 0, 0.01F, 10, 31.6F}, 4, logits.From(0));
  EXPECT_EQ(std::vector<float>(logits.nu.begin(), logits.nu.begin() + 3),
            (std::vector<float>{50, -50, 200}));
  EXPECT_EQ(std::vector<float>(logits.value.begin(), logits.value.begin() + 3),
            (std::vector<float>{1, 0, 1}));
  EXPECT_TRUE(std::isnan(logits.nu[3]));
  EXPECT_TRUE(std::isnan(logits.value[3]));
}

}  // namespace
}  // namespace quantry::engine
