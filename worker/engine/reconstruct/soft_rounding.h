#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "worker/engine/quant/grid.h"
#include "worker/engine/quant/quantized_linear.h"
#include "worker/engine/reconstruct/rectified_sigmoid.h"
#include "worker/engine/reconstruct/rounding_window.h"

namespace quantry::engine {

// How the factor on a group's scale follows from its logit v.
enum class ScaleCurve {
  kRectifiedSigmoid,  // 2 rsig(v), in [0, 2]; the authors' code
  kExponential,       // exp(v): cannot saturate
};

// Rates of one Adam step (betas 0.9 and 0.999, eps 1e-8).
struct StepRates {
  double rounding = 1e-3;
  double scale = 1e-3;
  double scale_weight_decay = 1e-4;  // L2, added to the gradient of v
  double dense = 0;                  // of norms and biases; not SoftRounding's own
  bool tune_scale = true;            // false: every factor stays as it is
};

// One linear whose rounding is learned (spec: tesseraq.md 2 and 3). Per weight
// a logit nu, per group a logit v:
//   u = floor(W / s) + h(nu) + z,   W~ = (clamp(u, 0, qmax) - z) s f(v)
// with h of RoundingWindow, rsig in the paper. W, s and z never change.
// Hardened entries (h an integer) keep their decision for good; their state is
// dropped, so that late stages cost less (6.3).
// CPU memory; results do not depend on the number of threads.
class SoftRounding {
 public:
  // Memory it holds from beginning to end: hardening frees none of it. A weight
  // takes W~, clamp(u) - z, nu with its place and two moments, floor(W / s) + z,
  // and a byte each for the decision and for what rounding would decide.
  static constexpr int64_t kBytesPerWeight = 4 + 4 + 16 + 2 + 1 + 1;
  static constexpr int64_t kBytesPerGroup = 24;  // s, z, v, f and two moments
  int64_t bytes() const;

  // weight: fp32 [out, in]. Starts with W~ = W inside the range, f = 1. reach:
  // 1 or 2, see RoundingWindow.
  SoftRounding(const at::Tensor& weight, const GroupGrid& grid, const GridSpec& spec,
               ScaleCurve curve, int reach = 1);

  // W~ [out, in], the same storage throughout, kept current by every call.
  const at::Tensor& weight() const { return weight_; }
  // What weight() would be if every entry were decided now, as Finish decides.
  at::Tensor HardWeight() const;

  // Freezes the most decided entries so that about `soft_fraction` of all
  // stays soft (2.2), and forgets Adam's moments (a fresh optimizer a stage).
  void Harden(double soft_fraction);
  // Everything: to the nearest integer of h; with reach 1, up where nu > 0.
  void HardenAll();
  // Gives up what was learned: everything hard, rounded to nearest, f = 1.
  void HardenToNearest();

  // One Adam step along dL/dW~ [out, in].
  void Step(const at::Tensor& gradient, const StepRates& rates);
  // The same in parts, so that several linears share all cores: rows
  // [first, last) only. Every row once between two BeginStep.
  void BeginStep(const StepRates& rates);
  void StepRows(const at::Tensor& gradient, int64_t first, int64_t last);

  // Integers and scales: codes from the decisions, scale = s f rounded to
  // `scale_dtype`. Every entry counts as hard.
  QuantizedLinear Finish(const std::string& name, const at::Tensor& bias,
                         at::ScalarType scale_dtype) const;

  int64_t rows() const { return weight_.size(0); }
  int64_t columns() const { return weight_.size(1); }
  int64_t live() const { return static_cast<int64_t>(live_.size()); }
  double hard_fraction() const;
  // Whether training can go on from here. A logit that is not a number makes its
  // weight none; those of hard entries may be infinite.
  bool IsSound() const;
  // Share of codes that differ from rounding to nearest on the same grid.
  double flip_ratio() const;
  // f(v) of every group.
  at::Tensor factors() const;

  // State between two stages, for a checkpoint: nu [out, in] with
  // RoundingWindow::HardLogit (+-inf with reach 1) for hard entries, v [out, groups].
  at::Tensor logits() const;
  at::Tensor scale_logits() const;
  void Restore(const at::Tensor& logits, const at::Tensor& scale_logits);

 private:
  // Entries still soft, in ascending order.
  struct Live {
    std::vector<int32_t> index;  // row * in + column
    std::vector<float> nu;
    std::vector<float> mean;    // Adam's first moment
    std::vector<float> square;  // and second

    size_t size() const { return index.size(); }
    void Resize(size_t count);
    void Set(size_t i, int64_t at, float logit);
  };
  // What a step over some groups needs beside their state.
  struct Scratch {
    std::vector<float> along;   // dL/df / s of each group
    std::vector<float> slopes;  // dL/dh of each soft entry
    std::vector<float> values;  // h after the step
  };
  struct Group {
    float scale;
    float zero;
    float v;
    float factor;
    float mean;
    float square;
  };
  static_assert(kBytesPerWeight == 4 + 4 + (sizeof(int32_t) + 3 * sizeof(float)) + 2 + 1 + 1);
  static_assert(kBytesPerGroup == sizeof(Group));

  // dL/dh of the soft entries [begin, end) in scratch.slopes, of the groups in scratch.along.
  void GatherSlopes(const float* slope, int64_t first, int64_t last, size_t begin, size_t end,
                    Scratch& scratch) const;
  void StepGroups(int64_t first, int64_t last, size_t begin, const Scratch& scratch);
  void Decide(int64_t index, int decision);
  bool IsOutside(int64_t index) const;
  bool IsInside(int64_t index, float nu) const;
  std::vector<int8_t> Decisions() const;
  int Code(int64_t index, int decision) const;
  // offset_ of the soft entries from their logits.
  void SetSoftOffsets();
  void Materialize();
  void ForgetMoments();
  float Factor(float v) const;
  float FactorSlope(float v) const;
  int64_t GroupOf(int64_t index) const { return index / group_size_; }
  // clamp(u) - z, also where the caller knows z.
  float SoftInteger(int64_t index, float rounding) const;
  float Offset(int64_t index, float rounding, float zero) const;

  GridSpec spec_;
  ScaleCurve curve_;
  RoundingWindow window_;
  int64_t group_size_;
  float qmax_;
  at::Tensor weight_;                // W~
  std::vector<int16_t> base_;        // floor(W / s) + z, clamped to [-2, qmax + 1]
  std::vector<uint8_t> nearest_up_;  // rounding to nearest would go up
  std::vector<int8_t> decision_;     // of hard entries, relative to floor(W / s)
  std::vector<float> offset_;        // clamp(u) - z
  Live live_;
  std::vector<Group> groups_;
  StepRates rates_;
  int64_t step_ = 0;  // of this stage
  float mean_correction_ = 1;
  float square_correction_ = 1;
};

// Run for every soft weight or group of a step.
inline float SoftRounding::Offset(int64_t index, float rounding, float zero) const {
  return std::clamp(static_cast<float>(base_[index]) + rounding, 0.0F, qmax_) - zero;
}

inline float SoftRounding::Factor(float v) const {
  return curve_ == ScaleCurve::kExponential ? std::exp(v) : 2.0F * RectifiedSigmoid(v);
}

inline float SoftRounding::FactorSlope(float v) const {
  return curve_ == ScaleCurve::kExponential ? std::exp(v) : 2.0F * RectifiedSigmoidSlope(v);
}

// Out of range whichever way it is rounded: no gradient (6.3).
inline bool SoftRounding::IsOutside(int64_t index) const {
  return base_[index] + window_.highest() <= 0 ||
         base_[index] + window_.lowest() >= static_cast<int>(qmax_);
}

// Whether u is in range, of an entry that is not outside whatever its rounding.
inline bool SoftRounding::IsInside(int64_t index, float nu) const {
  const int base = base_[index];
  if (base + window_.lowest() >= 0 && base + window_.highest() <= static_cast<int>(qmax_)) {
    return true;
  }
  const float soft = static_cast<float>(base) + window_.Value(nu);
  return soft >= 0 && soft <= qmax_;
}

}  // namespace quantry::engine
