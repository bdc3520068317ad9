#include "worker/engine/nn/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace quantry::engine {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.head_dim = 8;
  config.rope_theta = 100.0;
  return config;
}

const Architecture& Llama() { return *FindArchitecture("llama"); }

TEST(RopeTest, RotatesPairsOfTheTwoHalves) {
  const RopeTable table = MakeRopeTable(Llama(), Config(), 5);
  const at::Tensor x = at::arange(8, at::kFloat).view({1, 1, 1, 8}).expand({1, 1, 5, 8});
  const at::Tensor y = table.Apply(x);
  for (int64_t t = 0; t < 5; ++t) {
    for (int64_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(t) * std::pow(100.0, -2.0 * i / 8.0);
      const double a = static_cast<double>(i), b = static_cast<double>(i + 4);
      EXPECT_NEAR(y[0][0][t][i].item<double>(), a * std::cos(angle) - b * std::sin(angle), 1e-5);
      EXPECT_NEAR(y[0][0][t][i + 4].item<double>(), b * std::cos(angle) + a * std::sin(angle),
                  1e-5);
    }
  }
}

TEST(RopeTest, LinearScalingStretchesPositions) {
  ModelConfig scaled = Config();
  scaled.rope_scaling.kind = RopeScaling::Kind::kLinear;
  scaled.rope_scaling.factor = 4.0;
  const RopeTable plain = MakeRopeTable(Llama(), Config(), 3);
  const RopeTable stretched = MakeRopeTable(Llama(), scaled, 9);
  EXPECT_TRUE(stretched.cos[8].allclose(plain.cos[2], 1e-5, 1e-6));
}

TEST(RopeTest, Llama3KeepsShortWavesAndStretchesLongOnes) {
  ModelConfig config = Config();
  config.rope_theta = 1e6;
  config.rope_scaling = {RopeScaling::Kind::kLlama3, 8.0, 1.0, 4.0, 64};
  const RopeTable scaled = MakeRopeTable(Llama(), config, 2);
  config.rope_scaling = {};
  const RopeTable plain = MakeRopeTable(Llama(), config, 2);
  const auto angle = [](const RopeTable& t, int i) {
    return std::atan2(t.sin[1][i].item<double>(), t.cos[1][i].item<double>());
  };
  EXPECT_NEAR(angle(scaled, 0), angle(plain, 0), 1e-7);        // wavelength 6.3 < 16
  EXPECT_NEAR(angle(scaled, 3), angle(plain, 3) / 8.0, 1e-9);  // wavelength 2e5 > 64
}

TEST(RopeTest, NoTableForLearnedPositions) {
  EXPECT_FALSE(MakeRopeTable(*FindArchitecture("opt"), Config(), 4).defined());
}

}  // namespace
}  // namespace quantry::engine
