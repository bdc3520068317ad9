#include "worker/engine/quant/grid.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <set>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// A group narrower than this counts as constant (spec: tesseraq.md 1.2).
constexpr double kMinRange = 1e-5;
// Elements handled at once on the CPU, so that temporaries stay in the cache.
constexpr int64_t kChunkElements = int64_t{1} << 18;

// Rows of `weight` handled at once.
int64_t RowsPerChunk(const at::Tensor& weight) {
  if (!weight.device().is_cpu()) return weight.size(0);
  return std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, weight.size(1)));
}

// Of fp16, and of bf16 in it.
double LargestScale(at::ScalarType dtype) { return dtype == at::kHalf ? 65504.0 : 65280.0; }

// [rows, in] -> [rows, groups, g]
at::Tensor Grouped(const at::Tensor& weight, const GridSpec& spec) {
  const int64_t group = spec.GroupSizeFor(weight.size(1));
  return weight.contiguous().view({weight.size(0), weight.size(1) / group, group});
}

// Towards zero. The extremes of a symmetric group lie half a step beyond its
// codes, on a tie: a scale rounded up would send -absmax to the inner code.
at::Tensor RoundScalesDown(const at::Tensor& scales, at::ScalarType dtype) {
  const at::Tensor nearest = RoundScales(scales, dtype);
  const at::Tensor below = nearest.to(dtype).view(at::kShort).sub(1).view(dtype).to(at::kFloat);
  const at::Tensor down = at::where(nearest > scales, RoundScales(below, dtype), nearest);
  // bf16 is finer than fp16 below 2^-17: what both hold there are multiples of
  // fp16's smallest value.
  const at::Tensor multiple = scales.mul(0x1p24).floor_().mul_(0x1p-24).clamp_min_(0x1p-24);
  return at::where(down > scales, multiple, down);
}

// The grid of `grouped` [rows, groups, g]: scales and zeros [rows, groups].
GroupGrid GridOf(const at::Tensor& grouped, const GridSpec& spec, at::ScalarType scale_dtype) {
  auto [lo, hi] = at::aminmax(grouped, -1);
  return GridOfRange(lo.clamp_max_(0.0), hi.clamp_min_(0.0), spec, scale_dtype);
}

// clamp(round(W / s) + z, 0, qmax), fp32 [rows, groups, g], a fresh tensor.
at::Tensor CodesOf(const at::Tensor& grouped, const GridSpec& spec, const at::Tensor& scales,
                   const at::Tensor& zeros) {
  return grouped.div(scales.unsqueeze(-1))
      .round_()
      .add_(zeros.unsqueeze(-1))
      .clamp_(0.0, static_cast<double>(spec.qmax()));
}

// Divisors of `n` that are worth a group, ascending.
std::vector<std::string> UsefulDivisors(int64_t n) {
  std::vector<std::string> sizes;
  for (int64_t d = 2; d <= n && d <= 4096; ++d) {
    if (n % d == 0) sizes.push_back(std::to_string(d));
  }
  return sizes;
}

}  // namespace

at::ScalarType ScaleDtypeFor(at::ScalarType model_dtype) {
  return model_dtype == at::kBFloat16 ? at::kBFloat16 : at::kHalf;
}

at::Tensor RoundScales(const at::Tensor& scales, at::ScalarType dtype) {
  const double smallest = 0x1p-24;  // fp16's smallest subnormal
  const at::Tensor clamped = scales.clamp(smallest, LargestScale(dtype));
  if (dtype == at::kFloat) return clamped;  // as they are: for comparisons only
  return clamped.to(dtype).to(at::kHalf).to(at::kFloat);
}

at::Tensor ScalesOf(const at::Tensor& lo, const at::Tensor& hi, const GridSpec& spec) {
  const at::Tensor range = spec.symmetric ? at::maximum(hi, lo.neg()).mul(2.0) : hi - lo;
  return range.clamp_min(kMinRange).div(static_cast<double>(spec.qmax()));
}

at::Tensor ScalesOfRaisedZero(const at::Tensor& hi, const GridSpec& spec) {
  return hi.clamp_min(kMinRange).div(static_cast<double>(spec.qmax() - 1));
}

GroupGrid GridOfRange(const at::Tensor& lo, const at::Tensor& hi, const GridSpec& spec,
                      at::ScalarType scale_dtype) {
  const at::Tensor exact = ScalesOf(lo, hi, spec);
  if (spec.symmetric) {
    at::Tensor scales = RoundScalesDown(exact, scale_dtype);
    at::Tensor zeros = at::full_like(scales, static_cast<double>(int64_t{1} << (spec.bits - 1)));
    return {scales, zeros};
  }
  at::Tensor scales = RoundScales(exact, scale_dtype);
  const auto qmax = static_cast<double>(spec.qmax());
  at::Tensor zeros = lo.neg().div_(scales).round_().clamp_(0.0, qmax);
  if (spec.zero_at_least_one) {
    const at::Tensor wider = RoundScales(ScalesOfRaisedZero(hi, spec), scale_dtype);
    scales = at::where(zeros < 1.0, wider, scales);
    zeros.clamp_min_(1.0);
  }
  return {scales, zeros};
}

GroupGrid MinMaxGrid(const at::Tensor& weight, const GridSpec& spec, at::ScalarType scale_dtype) {
  return GridOf(Grouped(weight, spec), spec, scale_dtype);
}

at::Tensor RoundToGrid(const at::Tensor& weight, const GridSpec& spec, const GroupGrid& grid) {
  at::Tensor codes = at::empty(weight.sizes(), weight.options().dtype(at::kByte));
  const int64_t step = RowsPerChunk(weight);
  for (int64_t row = 0; row < weight.size(0); row += step) {
    const int64_t end = std::min(row + step, weight.size(0));
    const at::Tensor part = weight.slice(0, row, end);
    at::Tensor rounded = CodesOf(Grouped(part, spec), spec, grid.scales.slice(0, row, end),
                                 grid.zeros.slice(0, row, end));
    codes.slice(0, row, end).copy_(rounded.view(part.sizes()));
  }
  return codes;
}

QuantizedLinear MakeQuantizedLinear(const std::string& name, const at::Tensor& codes,
                                    const GroupGrid& grid, const at::Tensor& bias,
                                    const LinearFormat& format) {
  QuantizedLinear linear;
  linear.name = name;
  linear.grid = format.grid;
  linear.codes = codes.cpu();
  linear.scales = grid.scales.cpu();
  linear.zeros = grid.zeros.to(at::kByte).cpu();
  if (bias.defined()) linear.bias = bias.cpu();
  linear.scale_dtype = format.scale_dtype;
  return linear;
}

QuantizedLinear QuantizeNearest(const std::string& name, const at::Tensor& weight,
                                const at::Tensor& bias, const GridSpec& spec,
                                at::ScalarType scale_dtype) {
  const GroupGrid grid = MinMaxGrid(weight, spec, scale_dtype);
  return MakeQuantizedLinear(name, RoundToGrid(weight, spec, grid), grid, bias,
                             {spec, scale_dtype});
}

at::Tensor FakeQuantize(const at::Tensor& weight, const GridSpec& spec,
                        at::ScalarType scale_dtype) {
  at::Tensor result = at::empty(weight.sizes(), weight.options());
  const int64_t step = RowsPerChunk(weight);
  for (int64_t row = 0; row < weight.size(0); row += step) {
    const at::Tensor part = weight.slice(0, row, std::min(row + step, weight.size(0)));
    const at::Tensor grouped = Grouped(part, spec);
    const GroupGrid grid = GridOf(grouped, spec, scale_dtype);
    at::Tensor values = CodesOf(grouped, spec, grid.scales, grid.zeros)
                            .sub_(grid.zeros.unsqueeze(-1))
                            .mul_(grid.scales.unsqueeze(-1));
    result.slice(0, row, row + part.size(0)).copy_(values.view(part.sizes()));
  }
  return result;
}

void CheckStorable(const QuantizedLinear& linear) {
  if (linear.kind() != WeightKind::kGrid) return;  // others have no scales of this kind
  std::string what;
  if (!at::equal(linear.scales, RoundScales(linear.scales, linear.scale_dtype))) {
    what = "scales that are not rounded to their storage dtype";
  } else if (linear.zeros.numel() > 0 && linear.zeros.min().item<int64_t>() < linear.grid.zmin()) {
    what = "a zero point of 0 where 1 is the least";
  }
  if (what.empty()) return;
  throw EngineError(FailureClass::kBug, "INTERNAL",
                    "the method left " + linear.name + " with " + what +
                        "; no output could hold it; please report it",
                    {{"linear", linear.name}});
}

int64_t ClippedScales(const QuantizedLinear& linear) {
  if (linear.kind() != WeightKind::kGrid) return 0;
  return linear.scales.ge(LargestScale(linear.scale_dtype)).sum().item<int64_t>();
}

void CheckGrid(const GridSpec& spec, const std::vector<NamedWidth>& linears) {
  constexpr std::array kBits = {2, 3, 4, 6, 8};
  if (std::find(kBits.begin(), kBits.end(), spec.bits) == kBits.end()) {
    const std::string got = std::to_string(spec.bits);
    throw UserError("INVALID_SPEC", "bits must be 2, 3, 4, 6 or 8, got " + got, {{"bits", got}});
  }
  const std::string size = std::to_string(spec.group_size);
  if (spec.group_size == 0 || spec.group_size < -1) {
    throw UserError(
        "INVALID_SPEC",
        "group_size must be a positive divisor of in_features or -1 (per channel), got " + size,
        {{"group_size", size}});
  }
  std::vector<std::string> misfits;
  int64_t common = 0;
  for (const auto& [name, width] : linears) {
    common = std::gcd(common, width);
    if (spec.group_size > 0 && width % spec.group_size != 0) {
      misfits.push_back(name + " (in_features " + std::to_string(width) + ")");
    }
  }
  if (misfits.empty()) return;
  const std::string fitting = Join(UsefulDivisors(common), 64);
  throw UserError("INVALID_SPEC",
                  "group_size " + size + " does not divide " + Join(misfits) +
                      "; sizes that fit every linear: " + (fitting.empty() ? "" : fitting + ", ") +
                      "-1 (per channel)",
                  {{"group_size", size}, {"linears", Join(misfits)}, {"fitting", fitting}});
}

}  // namespace quantry::engine
