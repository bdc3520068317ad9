#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/reconstruct/rectified_sigmoid.h"

namespace quantry::engine {

// Integers a rounding may end at, relative to floor(W / s), and the soft value
// h(nu) that moves between them. With reach r these are 1-r .. r:
//   reach 1 (the paper)  0, 1
//   reach 2              -1, 0, 1, 2
// The curve of reach 1 is widened with its window, w = 2r - 1 steps, about the
// same middle:
//   h(nu) = w rsig(nu / w) - (r - 1)
//   reach 2: clamp(3.6 sigmoid(nu / 3) - 1.3, -1, 2)
// so that h(0) = 1/2 and h'(0) = 0.3 whatever the reach (one Adam step moves an
// undecided weight as far), the stretch past both ends stays a tenth of the
// window, and every start floor <= W / s < floor + 1 is hit exactly by
//   nu = w rsig^-1((h + r - 1) / w).
// A value h is as decided as it is far from the nearest half-integer, where
// rounding turns from one integer to the next: 0 there, 1/2 at an integer.
// Reach 1 is the published method, to the bit.
class RoundingWindow {
 public:
  static constexpr int kMaxReach = 2;

  explicit RoundingWindow(int reach)
      : reach_(reach), width_(static_cast<float>(2 * reach - 1)), rate_(1.0F / width_) {
    if (reach > 1) turn_ = Logit(1.5F);
  }

  int lowest() const { return 1 - reach_; }
  int highest() const { return reach_; }
  float width() const { return width_; }

  float Value(float nu) const { return width_ * RectifiedSigmoid(nu * rate_) + Lowest(); }
  // dh / dnu; 0 where the clamp holds, never NaN.
  float Slope(float nu) const { return RectifiedSigmoidSlope(nu * rate_); }
  // The nu with Value(nu) = value, which lies in the window.
  float Logit(float value) const {
    return width_ * InverseRectifiedSigmoid((value - Lowest()) * rate_);
  }

  // The half-integer nearest to a value, inside the window.
  float Middle(float value) const {
    return std::min(std::floor(value), static_cast<float>(reach_ - 1)) + 0.5F;
  }
  // 0 .. 0.5, how decided it is.
  float Score(float nu) const {
    const float value = Value(nu);
    return std::abs(value - Middle(value));
  }
  // The nearest integer of the window, of two equally near ones the lower.
  int Decision(float nu) const {
    const int upper_half = nu > 0 ? 1 : 0;
    if (reach_ == 1) return upper_half;
    return -1 + upper_half + (nu > -turn_ ? 1 : 0) + (nu > turn_ ? 1 : 0);
  }

  // What stands for nu of an entry hardened to an integer of the window: beyond
  // every live one. Infinite; with reach 2, where two integers share a side, the
  // inner one's is the largest finite number.
  float HardLogit(int decision) const {
    using Limits = std::numeric_limits<float>;
    const bool outer = decision == lowest() || decision == highest();
    const float size = outer ? Limits::infinity() : Limits::max();
    return decision > 0 ? size : -size;
  }
  static bool IsHardLogit(float nu) { return std::abs(nu) >= std::numeric_limits<float>::max(); }
  int HardDecision(float hard_logit) const {
    if (std::isinf(hard_logit)) return hard_logit > 0 ? highest() : lowest();
    return hard_logit > 0 ? 1 : 0;
  }

 private:
  float Lowest() const { return static_cast<float>(lowest()); }

  int reach_;
  float width_;     // steps
  float rate_;      // 1 / width
  float turn_ = 0;  // where reach 2 turns from 1 to 2, and with - from -1 to 0
};

}  // namespace quantry::engine
