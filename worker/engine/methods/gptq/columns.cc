#include "worker/engine/methods/gptq/columns.h"

#include <algorithm>

#include "worker/engine/methods/gptq/hessian.h"

namespace quantry::engine {
namespace {

// State of one weight on its way. Everything is transposed, [in, out], so that
// a column of the weight is one contiguous row.
class Rounder {
 public:
  Rounder(const at::Tensor& weight, const at::Tensor& upper, const at::Tensor& order,
          const GridSpec& spec, const ColumnOptions& options)
      : spec_(spec),
        options_(options),
        columns_(weight.size(1)),
        group_(spec.GroupSizeFor(columns_)),
        weight_(weight.index_select(1, order).t().contiguous()),
        upper_(upper),
        order_(order),
        groups_(order.cpu().div(group_, "trunc")),
        codes_(at::empty_like(weight_)) {}

  // `grid` undefined: groups are fitted on the way.
  void Run(const GroupGrid& grid, const GridFit& fit) {
    if (grid.scales.defined()) {
      scales_ = grid.scales.t().contiguous();
      zeros_ = grid.zeros.t().contiguous();
    } else {
      scales_ = at::empty({columns_ / group_, weight_.size(1)}, weight_.options());
      zeros_ = at::empty_like(scales_);
      fit_ = &fit;
    }
    for (int64_t first = 0; first < columns_; first += options_.block_size) {
      RunBlock(first, std::min(options_.block_size, columns_ - first));
    }
  }

  RoundedColumns Finish() const {
    RoundedColumns result;
    at::Tensor codes = at::empty_like(codes_);
    codes.index_copy_(0, order_, codes_);
    result.codes = codes.t().to(at::kByte).contiguous();
    result.grid = {scales_.t().contiguous(), zeros_.t().contiguous()};
    result.loss = loss_;
    return result;
  }

 private:
  void RunBlock(int64_t first, int64_t count) {
    // The block is worked on in a copy; weight_ keeps the columns as they were
    // at its boundary, which is what the reference fits later groups to.
    at::Tensor work = weight_.narrow(0, first, count).clone();
    at::Tensor errors = at::empty_like(work);
    const at::Tensor triangle = upper_.narrow(0, first, count).narrow(1, first, count);
    const at::Tensor diagonal = triangle.diagonal().cpu().contiguous();
    const float* pivots = diagonal.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = first + i;
      if (fit_ != nullptr && column % group_ == 0) Fit(column, first, work, errors);
      at::Tensor error = errors.select(0, i);
      Round(column, work.select(0, i), error);
      error.div_(pivots[i]);
      if (i + 1 == count) continue;
      work.narrow(0, i + 1, count - i - 1)
          .addr_(triangle.select(0, i).narrow(0, i + 1, count - i - 1), error, 1, -1);
    }
    loss_ += 0.5 * errors.square().sum(at::kDouble).item<double>();
    const int64_t rest = columns_ - first - count;
    if (rest == 0) return;
    weight_.narrow(0, first + count, rest)
        .addmm_(upper_.narrow(0, first, count).narrow(1, first + count, rest).t(), errors, 1, -1);
  }

  // Grid of the group that starts at `column`; `work` and `errors`: this block,
  // which starts at `first`.
  void Fit(int64_t column, int64_t first, const at::Tensor& work, const at::Tensor& errors) {
    at::Tensor values = weight_.narrow(0, column, group_);
    if (options_.fresh_groups) {
      const int64_t done = column - first;
      const int64_t inside = std::min(group_, work.size(0) - done);
      values = values.clone();
      values.narrow(0, 0, inside).copy_(work.narrow(0, done, inside));
      // Columns of later blocks lack what this one has done so far.
      const at::Tensor later =
          upper_.narrow(0, first, done).narrow(1, column + inside, group_ - inside);
      values.narrow(0, inside, group_ - inside).addmm_(later.t(), errors.narrow(0, 0, done), 1, -1);
    }
    const GroupGrid grid = (*fit_)(values.t().contiguous());
    scales_.select(0, column / group_).copy_(grid.scales.select(1, 0));
    zeros_.select(0, column / group_).copy_(grid.zeros.select(1, 0));
  }

  // Rounds one column [out]; error = w - q.
  void Round(int64_t column, const at::Tensor& value, at::Tensor& error) {
    const int64_t group = groups_.const_data_ptr<int64_t>()[column];
    const at::Tensor scale = scales_.select(0, group);
    const at::Tensor zero = zeros_.select(0, group);
    at::Tensor codes = codes_.select(0, column);
    at::div_out(codes, value, scale);
    codes.round_().add_(zero).clamp_(0.0, static_cast<double>(spec_.qmax()));
    at::sub_out(error, codes, zero);
    error.mul_(scale).neg_().add_(value);
  }

  const GridSpec& spec_;
  const ColumnOptions& options_;
  int64_t columns_;
  int64_t group_;
  at::Tensor weight_;  // compensated up to the last block boundary
  at::Tensor upper_;
  at::Tensor order_;   // int64 [in], original index of each column
  at::Tensor groups_;  // int64 [in], group of each column, on the CPU
  at::Tensor codes_;   // fp32
  at::Tensor scales_;
  at::Tensor zeros_;
  const GridFit* fit_ = nullptr;
  double loss_ = 0;
};

RoundedColumns Nearest(const at::Tensor& weight, const GridSpec& spec, const GroupGrid& grid) {
  RoundedColumns result;
  result.codes = RoundToGrid(weight, spec, grid);
  result.grid = grid;
  result.rounded_to_nearest = true;
  return result;
}

}  // namespace

RoundedColumns RoundColumns(const at::Tensor& weight, const at::Tensor& hessian,
                            const GridSpec& spec, const GridFit& fit,
                            const ColumnOptions& options) {
  const bool whole_rows = spec.GroupSizeFor(weight.size(1)) == weight.size(1);
  GroupGrid grid;
  if (whole_rows) grid = fit(weight);  // before dead columns vanish
  const at::Tensor dead = hessian.diagonal() == 0;
  const at::Tensor live = weight.masked_fill(dead.unsqueeze(0), 0.0);
  at::Tensor damped = hessian.clone();
  damped.diagonal().masked_fill_(dead, 1.0);
  if (!whole_rows && (options.static_groups || options.act_order)) grid = fit(live);
  at::Tensor order = at::arange(weight.size(1), hessian.options().dtype(at::kLong));
  if (options.act_order) {
    order = at::argsort(damped.diagonal(), /*stable=*/true, /*dim=*/0, /*descending=*/true);
    damped = damped.index_select(0, order).index_select(1, order);
  }
  const InverseFactor factor = FactorInverse(damped, options.damping);
  if (!factor.upper.defined()) return Nearest(live, spec, grid.scales.defined() ? grid : fit(live));
  Rounder rounder(live, factor.upper, order, spec, options);
  rounder.Run(grid, fit);
  RoundedColumns result = rounder.Finish();
  result.damping = factor.damping;
  return result;
}

}  // namespace quantry::engine
