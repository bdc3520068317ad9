#include "worker/engine/reconstruct/soft_rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/base/error.h"
#include "worker/engine/base/non_finite.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/group_kernels.h"
#include "worker/engine/reconstruct/order_statistic.h"

namespace quantry::engine {
namespace {

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
  live_.Resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const Group& group = groups_[GroupOf(i)];
    const float position = w[i] / group.scale;
    const float floor = std::floor(position);
    const float fraction = position - floor;
    base_[i] = static_cast<int16_t>(std::clamp(floor + group.zero, -2.0F, qmax_ + 1));
    nearest_up_[i] = std::nearbyint(position) > floor ? 1 : 0;
    live_.Set(i, i, window_.Logit(fraction));
    offset_[i] = SoftInteger(i, fraction);
  }
  Materialize();
}

void SoftRounding::Live::Resize(size_t count) {
  index.resize(count);
  nu.resize(count);
  mean.resize(count);
  square.resize(count);
}

void SoftRounding::Live::Set(size_t i, int64_t at, float logit) {
  index[i] = static_cast<int32_t>(at);
  nu[i] = logit;
  mean[i] = square[i] = 0;
}

float SoftRounding::SoftInteger(int64_t index, float rounding) const {
  return Offset(index, rounding, groups_[GroupOf(index)].zero);
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
  for (size_t i = 0; i < live_.size(); ++i) {
    const int32_t index = live_.index[i];
    const Group& group = groups_[GroupOf(index)];
    const auto rounding = static_cast<float>(window_.Decision(live_.nu[i]));
    out[index] = SoftInteger(index, rounding) * (group.scale * group.factor);
  }
  return hard;
}

void SoftRounding::ForgetMoments() {
  step_ = 0;
  std::fill(live_.mean.begin(), live_.mean.end(), 0.0F);
  std::fill(live_.square.begin(), live_.square.end(), 0.0F);
  for (Group& group : groups_) group.mean = group.square = 0;
}

void SoftRounding::Decide(int64_t index, int decision) {
  decision_[index] = static_cast<int8_t>(decision);
  offset_[index] = SoftInteger(index, static_cast<float>(decision));
}

// Of every entry, as if all were hard.
std::vector<int8_t> SoftRounding::Decisions() const {
  std::vector<int8_t> decisions = decision_;
  for (size_t i = 0; i < live_.size(); ++i) {
    decisions[live_.index[i]] = static_cast<int8_t>(window_.Decision(live_.nu[i]));
  }
  return decisions;
}

int SoftRounding::Code(int64_t index, int decision) const {
  return std::clamp(static_cast<int>(base_[index]) + decision, 0, static_cast<int>(qmax_));
}

void SoftRounding::Harden(double soft_fraction) {
  // Hard entries have the largest score there is, 0.5: they stand at the end.
  std::vector<float> scores(live_.size());
  for (size_t i = 0; i < live_.size(); ++i) scores[i] = window_.Score(live_.nu[i]);
  const float threshold =
      InterpolatedQuantile(scores, static_cast<int64_t>(offset_.size()), 0.5F, soft_fraction);
  size_t kept = 0;
  for (size_t i = 0; i < live_.size(); ++i) {
    const float nu = live_.nu[i];
    const float rounding = window_.Value(nu);
    const float middle = window_.Middle(rounding);
    if (rounding > middle + threshold || rounding < middle - threshold) {
      Decide(live_.index[i], window_.Decision(nu));
    } else {
      live_.Set(kept++, live_.index[i], nu);
    }
  }
  live_.Resize(kept);
  ForgetMoments();
  Materialize();
}

void SoftRounding::HardenAll() {
  for (size_t i = 0; i < live_.size(); ++i) Decide(live_.index[i], window_.Decision(live_.nu[i]));
  live_.Resize(0);
  ForgetMoments();
  Materialize();
}

void SoftRounding::HardenToNearest() {
  for (size_t i = 0; i < nearest_up_.size(); ++i) Decide(static_cast<int64_t>(i), nearest_up_[i]);
  live_.Resize(0);
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

void SoftRounding::StepRows(const at::Tensor& gradient, int64_t first, int64_t last) {
  constexpr int64_t kAtOnce = 4096;  // weights: their slopes and state stay in the cache
  const auto* slope = gradient.const_data_ptr<float>();
  const int64_t groups_per_row = columns() / group_size_;
  const int64_t end = last * groups_per_row;
  const int64_t groups = std::max<int64_t>(kAtOnce / group_size_, 1);
  const auto soft_from = [&](int64_t group) {
    const auto place =
        std::lower_bound(live_.index.begin(), live_.index.end(), group * group_size_);
    return static_cast<size_t>(place - live_.index.begin());
  };
  const LogitStep step = {window_.width(), static_cast<float>(window_.lowest()),
                          static_cast<float>(rates_.rounding), mean_correction_,
                          square_correction_};
  Scratch scratch;
  size_t begin = soft_from(first * groups_per_row);
  for (int64_t from = first * groups_per_row; from < end; from += groups) {
    const int64_t to = std::min(from + groups, end);
    const size_t next = soft_from(to);
    GatherSlopes(slope, from, to, begin, next, scratch);
    StepLogits(step, static_cast<int64_t>(next - begin),
               {scratch.slopes.data(), live_.nu.data() + begin, live_.mean.data() + begin,
                live_.square.data() + begin, scratch.values.data()});
    StepGroups(from, to, begin, scratch);
    begin = next;
  }
}

void SoftRounding::GatherSlopes(const float* slope, int64_t first, int64_t last, size_t begin,
                                size_t end, Scratch& scratch) const {
  scratch.along.assign(last - first, 0);
  scratch.slopes.resize(end - begin);
  scratch.values.resize(end - begin);
  size_t i = begin;
  for (int64_t r = first; r < last; ++r) {
    const int64_t at = r * group_size_;
    const float scale = groups_[r].scale * groups_[r].factor;
    if (rates_.tune_scale) {
      scratch.along[r - first] = DotGroup(slope + at, &offset_[at], group_size_);
    }
    for (; i < end && live_.index[i] < at + group_size_; ++i) {
      const int32_t index = live_.index[i];
      const bool moves = !IsOutside(index) && IsInside(index, live_.nu[i]);
      scratch.slopes[i - begin] = moves ? slope[index] * scale : 0.0F;
    }
  }
}

void SoftRounding::StepGroups(int64_t first, int64_t last, size_t begin, const Scratch& scratch) {
  auto* out = weight_.mutable_data_ptr<float>();
  const AdamStep adam{mean_correction_, square_correction_};
  size_t i = 0;
  for (int64_t r = first; r < last; ++r) {
    Group& group = groups_[r];
    const int64_t at = r * group_size_;
    for (; i < scratch.values.size() && live_.index[begin + i] < at + group_size_; ++i) {
      const int32_t index = live_.index[begin + i];
      offset_[index] = Offset(index, scratch.values[i], group.zero);
    }
    if (rates_.tune_scale) {
      const float g = FactorSlope(group.v) * scratch.along[r - first] * group.scale +
                      static_cast<float>(rates_.scale_weight_decay) * group.v;
      group.v -= static_cast<float>(rates_.scale) * adam.Direction(g, group.mean, group.square);
      group.factor = Factor(group.v);
    }
    ScaleGroup(&offset_[at], group_size_, group.scale * group.factor, out + at);
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
         BytesOf(decision_) + BytesOf(offset_) + BytesOf(live_.index) + BytesOf(live_.nu) +
         BytesOf(live_.mean) + BytesOf(live_.square) + BytesOf(groups_);
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

bool SoftRounding::IsSound() const { return AllFinite(weight_) && AllFinite(scale_logits()); }

at::Tensor SoftRounding::logits() const {
  at::Tensor logits = at::empty(weight_.sizes(), at::kFloat);
  auto* out = logits.mutable_data_ptr<float>();
  for (size_t i = 0; i < decision_.size(); ++i) out[i] = window_.HardLogit(decision_[i]);
  for (size_t i = 0; i < live_.size(); ++i) out[live_.index[i]] = live_.nu[i];
  return logits;
}

at::Tensor SoftRounding::scale_logits() const {
  at::Tensor logits = at::empty({rows(), columns() / group_size_}, at::kFloat);
  for (size_t r = 0; r < groups_.size(); ++r) logits.mutable_data_ptr<float>()[r] = groups_[r].v;
  return logits;
}

void SoftRounding::SetSoftOffsets() {
  std::vector<float> values(live_.size());
  LogitValues(window_.width(), static_cast<float>(window_.lowest()),
              static_cast<int64_t>(values.size()), live_.nu.data(), values.data());
  for (size_t i = 0; i < values.size(); ++i) {
    offset_[live_.index[i]] = SoftInteger(live_.index[i], values[i]);
  }
}

void SoftRounding::Restore(const at::Tensor& logits, const at::Tensor& scale_logits) {
  const auto* nu = logits.const_data_ptr<float>();
  size_t soft = 0;
  live_.Resize(offset_.size());
  for (size_t i = 0; i < offset_.size(); ++i) {
    const auto index = static_cast<int64_t>(i);
    if (RoundingWindow::IsHardLogit(nu[i])) {
      Decide(index, window_.HardDecision(nu[i]));
    } else {
      live_.Set(soft++, index, nu[i]);
    }
  }
  live_.Resize(soft);
  SetSoftOffsets();
  for (size_t r = 0; r < groups_.size(); ++r) {
    groups_[r].v = scale_logits.const_data_ptr<float>()[r];
    groups_[r].factor = Factor(groups_[r].v);
  }
  ForgetMoments();
  Materialize();
}

}  // namespace quantry::engine
