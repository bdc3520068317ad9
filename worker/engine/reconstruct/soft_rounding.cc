#include "worker/engine/reconstruct/soft_rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/group_kernels.h"
#include "worker/engine/reconstruct/order_statistic.h"
#include "worker/engine/reconstruct/rectified_sigmoid.h"

namespace quantry::engine {
namespace {

// Adam's moments of one variable; returns the direction to go down, in units
// of the rate.
struct AdamStep {
  float mean_correction;    // 1 / (1 - beta1^t)
  float square_correction;  // 1 / sqrt(1 - beta2^t)

  float Direction(float gradient, float& mean, float& square) const {
    constexpr auto kRest1 = static_cast<float>(1.0 - kAdamBeta1);
    constexpr auto kRest2 = static_cast<float>(1.0 - kAdamBeta2);
    mean += (gradient - mean) * kRest1;
    square = square * static_cast<float>(kAdamBeta2) + gradient * gradient * kRest2;
    return mean * mean_correction /
           (std::sqrt(square) * square_correction + static_cast<float>(kAdamEpsilon));
  }
};

template <typename T>
int64_t BytesOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.capacity() * sizeof(T));
}

// A variable keeps its place in 32 bits.
int64_t CheckedCount(const at::Tensor& weight) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (weight.numel() <= kMost) return weight.numel();
  throw UserError("UNSUPPORTED_ARCHITECTURE",
                  StrCat("a linear of ", weight.numel(),
                         " weights is too large for learned rounding, "
                         "which takes at most ",
                         kMost, ": use a method without it (gptq, awq, rtn)"),
                  {{"weights", std::to_string(weight.numel())}});
}

}  // namespace

SoftRounding::SoftRounding(const at::Tensor& weight, const GroupGrid& grid, const GridSpec& spec,
                           ScaleCurve curve, int reach)
    : spec_(spec),
      curve_(curve),
      window_(reach),
      group_size_(spec.GroupSizeFor(weight.size(1))),
      qmax_(static_cast<float>(spec.qmax())) {
  const int64_t count = CheckedCount(weight);
  weight_ = at::empty(weight.sizes(), at::kFloat);
  const at::Tensor source = weight.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor scales = grid.scales.to(at::kCPU, at::kFloat).contiguous();
  const at::Tensor zeros = grid.zeros.to(at::kCPU, at::kFloat).contiguous();
  const auto* w = source.const_data_ptr<float>();
  groups_.resize(scales.numel());
  for (size_t r = 0; r < groups_.size(); ++r) {
    groups_[r] = {scales.const_data_ptr<float>()[r], zeros.const_data_ptr<float>()[r], 0, 1, 0, 0};
  }
  base_.resize(count);
  nearest_up_.resize(count);
  decision_.resize(count);
  offset_.resize(count);
  live_.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const Group& group = groups_[GroupOf(i)];
    const float position = w[i] / group.scale;
    const float floor = std::floor(position);
    const float fraction = position - floor;
    base_[i] = static_cast<int16_t>(std::clamp(floor + group.zero, -2.0F, qmax_ + 1));
    nearest_up_[i] = std::nearbyint(position) > floor ? 1 : 0;
    live_[i] = {static_cast<int32_t>(i), window_.Logit(fraction), 0, 0};
    offset_[i] = SoftInteger(i, fraction);
  }
  Materialize();
}

float SoftRounding::SoftInteger(int64_t index, float rounding) const {
  return std::clamp(static_cast<float>(base_[index]) + rounding, 0.0F, qmax_) -
         groups_[GroupOf(index)].zero;
}

float SoftRounding::Factor(float v) const {
  return curve_ == ScaleCurve::kExponential ? std::exp(v) : 2.0F * RectifiedSigmoid(v);
}

float SoftRounding::FactorSlope(float v) const {
  return curve_ == ScaleCurve::kExponential ? std::exp(v) : 2.0F * RectifiedSigmoidSlope(v);
}

void SoftRounding::Materialize() {
  auto* out = weight_.mutable_data_ptr<float>();
  for (size_t r = 0; r < groups_.size(); ++r) {
    const int64_t first = static_cast<int64_t>(r) * group_size_;
    ScaleGroup(&offset_[first], group_size_, groups_[r].scale * groups_[r].factor, out + first);
  }
}

at::Tensor SoftRounding::HardWeight() const {
  at::Tensor hard = weight_.clone();
  auto* out = hard.mutable_data_ptr<float>();
  for (const Live& entry : live_) {
    const Group& group = groups_[GroupOf(entry.index)];
    const auto rounding = static_cast<float>(window_.Decision(entry.nu));
    out[entry.index] = SoftInteger(entry.index, rounding) * (group.scale * group.factor);
  }
  return hard;
}

void SoftRounding::ForgetMoments() {
  step_ = 0;
  for (Live& entry : live_) entry.mean = entry.square = 0;
  for (Group& group : groups_) group.mean = group.square = 0;
}

void SoftRounding::Decide(int64_t index, int decision) {
  decision_[index] = static_cast<int8_t>(decision);
  offset_[index] = SoftInteger(index, static_cast<float>(decision));
}

// Of every entry, as if all were hard.
std::vector<int8_t> SoftRounding::Decisions() const {
  std::vector<int8_t> decisions = decision_;
  for (const Live& entry : live_) {
    decisions[entry.index] = static_cast<int8_t>(window_.Decision(entry.nu));
  }
  return decisions;
}

int SoftRounding::Code(int64_t index, int decision) const {
  return std::clamp(static_cast<int>(base_[index]) + decision, 0, static_cast<int>(qmax_));
}

void SoftRounding::Harden(double soft_fraction) {
  // Hard entries have the largest score there is, 0.5: they stand at the end.
  std::vector<float> scores(live_.size());
  for (size_t i = 0; i < live_.size(); ++i) scores[i] = window_.Score(live_[i].nu);
  const float threshold =
      InterpolatedQuantile(scores, static_cast<int64_t>(offset_.size()), 0.5F, soft_fraction);
  size_t kept = 0;
  for (const Live& entry : live_) {
    const float rounding = window_.Value(entry.nu);
    const float middle = window_.Middle(rounding);
    if (rounding > middle + threshold || rounding < middle - threshold) {
      Decide(entry.index, window_.Decision(entry.nu));
    } else {
      live_[kept++] = entry;
    }
  }
  live_.resize(kept);
  ForgetMoments();
  Materialize();
}

void SoftRounding::HardenAll() {
  for (const Live& entry : live_) Decide(entry.index, window_.Decision(entry.nu));
  live_.clear();
  ForgetMoments();
  Materialize();
}

void SoftRounding::HardenToNearest() {
  for (size_t i = 0; i < nearest_up_.size(); ++i) Decide(static_cast<int64_t>(i), nearest_up_[i]);
  live_.clear();
  for (Group& group : groups_) {
    group.v = 0;
    group.factor = Factor(0);
  }
  ForgetMoments();
  Materialize();
}

void SoftRounding::Step(const at::Tensor& gradient, const StepRates& rates) {
  BeginStep(rates);
  StepRows(gradient, 0, rows());
}

void SoftRounding::BeginStep(const StepRates& rates) {
  rates_ = rates;
  ++step_;
  mean_correction_ = static_cast<float>(1.0 / (1.0 - std::pow(kAdamBeta1, step_)));
  square_correction_ = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(kAdamBeta2, step_)));
}

// Out of range whichever way it is rounded: no gradient (6.3).
bool SoftRounding::IsOutside(int64_t index) const {
  return base_[index] + window_.highest() <= 0 ||
         base_[index] + window_.lowest() >= static_cast<int>(qmax_);
}

// Whether u is in range, of an entry that is not outside whatever its rounding.
bool SoftRounding::IsInside(int64_t index, float nu) const {
  const int base = base_[index];
  if (base + window_.lowest() >= 0 && base + window_.highest() <= static_cast<int>(qmax_)) {
    return true;
  }
  const float soft = static_cast<float>(base) + window_.Value(nu);
  return soft >= 0 && soft <= qmax_;
}

void SoftRounding::StepRows(const at::Tensor& gradient, int64_t first, int64_t last) {
  const auto* slope = gradient.const_data_ptr<float>();
  auto* out = weight_.mutable_data_ptr<float>();
  const AdamStep adam{mean_correction_, square_correction_};
  const auto rate = static_cast<float>(rates_.rounding);
  const int64_t groups_per_row = columns() / group_size_;
  auto entry = std::lower_bound(live_.begin(), live_.end(), first * columns(),
                                [](const Live& live, int64_t index) { return live.index < index; });
  for (int64_t r = first * groups_per_row; r < last * groups_per_row; ++r) {
    Group& group = groups_[r];
    const int64_t begin = r * group_size_;
    const int64_t end = begin + group_size_;
    const float scale = group.scale * group.factor;
    const float along =
        rates_.tune_scale ? DotGroup(slope + begin, &offset_[begin], group_size_) : 0;
    for (; entry != live_.end() && entry->index < end; ++entry) {
      if (IsOutside(entry->index)) continue;
      const float moved = IsInside(entry->index, entry->nu) ? scale : 0.0F;  // dW~ / du
      const float g = slope[entry->index] * moved * window_.Slope(entry->nu);
      entry->nu -= rate * adam.Direction(g, entry->mean, entry->square);
      offset_[entry->index] = SoftInteger(entry->index, window_.Value(entry->nu));
    }
    if (rates_.tune_scale) {
      const float g = FactorSlope(group.v) * along * group.scale +
                      static_cast<float>(rates_.scale_weight_decay) * group.v;
      group.v -= static_cast<float>(rates_.scale) * adam.Direction(g, group.mean, group.square);
      group.factor = Factor(group.v);
    }
    ScaleGroup(&offset_[begin], group_size_, group.scale * group.factor, out + begin);
  }
}

QuantizedLinear SoftRounding::Finish(const std::string& name, const at::Tensor& bias,
                                     at::ScalarType scale_dtype) const {
  const std::vector<int8_t> decisions = Decisions();
  QuantizedLinear linear;
  linear.name = name;
  linear.grid = spec_;
  linear.scale_dtype = scale_dtype;
  if (bias.defined()) linear.bias = bias.cpu();
  linear.codes = at::empty(weight_.sizes(), at::kByte);
  auto* codes = linear.codes.mutable_data_ptr<uint8_t>();
  for (size_t i = 0; i < decisions.size(); ++i) {
    codes[i] = static_cast<uint8_t>(Code(static_cast<int64_t>(i), decisions[i]));
  }
  at::Tensor scales = at::empty({rows(), columns() / group_size_}, at::kFloat);
  linear.zeros = at::empty(scales.sizes(), at::kByte);
  for (size_t r = 0; r < groups_.size(); ++r) {
    scales.mutable_data_ptr<float>()[r] = groups_[r].scale * groups_[r].factor;
    linear.zeros.mutable_data_ptr<uint8_t>()[r] = static_cast<uint8_t>(groups_[r].zero);
  }
  linear.scales = RoundScales(scales, scale_dtype);
  return linear;
}

int64_t SoftRounding::bytes() const {
  return static_cast<int64_t>(weight_.nbytes()) + BytesOf(base_) + BytesOf(nearest_up_) +
         BytesOf(decision_) + BytesOf(offset_) + BytesOf(live_) + BytesOf(groups_);
}

double SoftRounding::hard_fraction() const {
  return 1.0 - static_cast<double>(live_.size()) / static_cast<double>(offset_.size());
}

double SoftRounding::flip_ratio() const {
  const std::vector<int8_t> decisions = Decisions();
  int64_t flips = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(decisions.size()); ++i) {
    flips += Code(i, decisions[i]) != Code(i, nearest_up_[i]) ? 1 : 0;
  }
  return static_cast<double>(flips) / static_cast<double>(decisions.size());
}

at::Tensor SoftRounding::factors() const {
  at::Tensor factors = at::empty({rows(), columns() / group_size_}, at::kFloat);
  for (size_t r = 0; r < groups_.size(); ++r) {
    factors.mutable_data_ptr<float>()[r] = groups_[r].factor;
  }
  return factors;
}

at::Tensor SoftRounding::logits() const {
  at::Tensor logits = at::empty(weight_.sizes(), at::kFloat);
  auto* out = logits.mutable_data_ptr<float>();
  for (size_t i = 0; i < decision_.size(); ++i) out[i] = window_.HardLogit(decision_[i]);
  for (const Live& entry : live_) out[entry.index] = entry.nu;
  return logits;
}

at::Tensor SoftRounding::scale_logits() const {
  at::Tensor logits = at::empty({rows(), columns() / group_size_}, at::kFloat);
  for (size_t r = 0; r < groups_.size(); ++r) logits.mutable_data_ptr<float>()[r] = groups_[r].v;
  return logits;
}

void SoftRounding::Restore(const at::Tensor& logits, const at::Tensor& scale_logits) {
  const auto* nu = logits.const_data_ptr<float>();
  live_.clear();
  for (size_t i = 0; i < offset_.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    if (RoundingWindow::IsHardLogit(nu[i])) {
      Decide(index, window_.HardDecision(nu[i]));
    } else {
      live_.push_back({static_cast<int32_t>(i), nu[i], 0, 0});
      offset_[i] = SoftInteger(index, window_.Value(nu[i]));
    }
  }
  for (size_t r = 0; r < groups_.size(); ++r) {
    groups_[r].v = scale_logits.const_data_ptr<float>()[r];
    groups_[r].factor = Factor(groups_[r].v);
  }
  ForgetMoments();
  Materialize();
}

}  // namespace quantry::engine
