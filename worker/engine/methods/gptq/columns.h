#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>

#include "worker/engine/quant/grid.h"

namespace quantry::engine {

// Chooses scales and zero points of a weight or a part of its columns.
using GridFit = std::function<GroupGrid(const at::Tensor& weight)>;

struct ColumnOptions {
  double damping = 0.01;  // share of mean(diag H) added to the diagonal
  int64_t block_size = 128;
  bool act_order = false;      // columns by falling diag H; implies static grids
  bool static_groups = false;  // grids of all groups from the weight as given
  bool fresh_groups = false;   // a later group's grid sees all compensation before it
};

// A weight rounded column by column.
struct RoundedColumns {
  at::Tensor codes;  // uint8 [out, in]
  GroupGrid grid;    // [out, groups]
  double loss = 0;   // 1/2 sum ((w - q) / U_jj)^2, the error H predicts
  double damping = 0;
  bool rounded_to_nearest = false;  // H could not be factorized
};

// GPTQ (spec: baselines.md 1.3): rounds weight [out, in] to its grid one column
// at a time and moves each column's error, weighted by the Cholesky factor of
// H^-1, onto the columns not yet rounded. Columns of zero second moment are set
// to 0. `fit` makes the grid of a whole group or several: of the weight as given
// for one group a row and static groups; else, at a group's first column, of its
// columns as compensated up to the last block boundary (the reference), or up to
// that column (`fresh_groups`).
RoundedColumns RoundColumns(const at::Tensor& weight, const at::Tensor& hessian,
                            const GridSpec& spec, const GridFit& fit, const ColumnOptions& options);

}  // namespace quantry::engine
