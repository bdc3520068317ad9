#pragma once

#include <algorithm>
#include <cmath>

namespace quantry::engine {

// The stretched, clamped sigmoid of AdaRound and TesseraQ (spec: tesseraq.md
// 2.1): rsig(t) = clamp(1.2 sigmoid(t) - 0.1, 0, 1); rsig(+-inf) = 1 / 0.
constexpr float kSigmoidStretch = 1.2F;
constexpr float kSigmoidShift = 0.1F;

inline float Sigmoid(float t) { return 1.0F / (1.0F + std::exp(-t)); }

inline float RectifiedSigmoid(float t) {
  return std::clamp(kSigmoidStretch * Sigmoid(t) - kSigmoidShift, 0.0F, 1.0F);
}

// d rsig / dt; 0 where the clamp holds, never NaN.
inline float RectifiedSigmoidSlope(float t) {
  const float sigmoid = Sigmoid(t);
  const float value = kSigmoidStretch * sigmoid - kSigmoidShift;
  if (!(value >= 0.0F && value <= 1.0F)) return 0.0F;
  return kSigmoidStretch * sigmoid * (1.0F - sigmoid);
}

// The t with rsig(t) = y for y in [0, 1]: finite at both ends (-+ln 11).
inline float InverseRectifiedSigmoid(float y) {
  return -std::log(kSigmoidStretch / (y + kSigmoidShift) - 1.0F);
}

}  // namespace quantry::engine
