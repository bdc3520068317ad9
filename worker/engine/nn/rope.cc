#include "worker/engine/nn/rope.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "worker/engine/nn/fused.h"

namespace quantry::engine {
namespace {

// Llama 3.1's change of one inverse frequency: long waves are stretched by
// `factor`, short ones stay, between them it goes over linearly.
double ScaleLlama3(double frequency, const RopeScaling& scaling) {
  const auto context = static_cast<double>(scaling.original_max_positions);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < context / scaling.high_freq_factor) return frequency;
  if (wavelength > context / scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth = (context / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1.0 - smooth) * frequency / scaling.factor + smooth * frequency;
}

// Inverse frequencies [head_dim / 2], rounded to fp32 as the models were
// trained with.
std::vector<float> InverseFrequencies(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  std::vector<float> result;
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const double exponent = static_cast<double>(i) / static_cast<double>(config.head_dim);
    double frequency = 1.0 / std::pow(config.rope_theta, exponent);
    if (scaling.kind == RopeScaling::Kind::kLinear) frequency /= scaling.factor;
    if (scaling.kind == RopeScaling::Kind::kLlama3) frequency = ScaleLlama3(frequency, scaling);
    result.push_back(static_cast<float>(frequency));
  }
  return result;
}

}  // namespace

RopeTable MakeRopeTable(const Architecture& architecture, const ModelConfig& config,
                        int64_t positions, const at::Device& device) {
  RopeTable table;
  if (architecture.positions != PositionKind::kRope) return table;
  const at::Tensor frequencies = at::tensor(InverseFrequencies(config), at::kFloat);
  const at::Tensor angles = at::outer(at::arange(positions, at::kFloat), frequencies);
  const at::Tensor both = at::cat({angles, angles}, -1);
  table.cos = both.cos().to(device);
  table.sin = both.sin().to(device);
  return table;
}

at::Tensor RopeTable::Apply(const at::Tensor& x, int64_t first) const {
  const int64_t tokens = x.size(2);
  return Rotate(x, cos.narrow(0, first, tokens), sin.narrow(0, first, tokens));
}

RopeTable RopeTable::To(const at::Device& device) const {
  if (!defined()) return *this;
  return {cos.to(device), sin.to(device)};
}

}  // namespace quantry::engine
