#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/engine/base/parallel.h"

namespace quantry::engine {

// Into how many equal shares `windows` windows are split: on the host one a core
// where they divide evenly; else, and on other devices, 1.
inline int64_t Shares(const at::Device& device, int64_t windows) {
  const int64_t threads = device.is_cpu() ? at::get_num_threads() : 1;
  return windows % threads == 0 ? threads : 1;
}

// part(windows) summed with `add` over Shares() of `windows`, side by side.
template <typename Part, typename Add>
auto OverShares(const at::Device& device, const std::vector<int64_t>& windows, const Part& part,
                const Add& add) {
  using Result = decltype(part(windows));
  const auto count = static_cast<int64_t>(windows.size());
  const int64_t shares = Shares(device, count);
  if (shares == 1) return part(windows);
  std::vector<Result> parts(shares);
  ForEachInParallel(shares, [&](int64_t share) {
    const auto first = windows.begin() + share * count / shares;
    parts[share] = part(std::vector<int64_t>(first, first + count / shares));
  });
  for (int64_t share = 1; share < shares; ++share) add(parts[0], parts[share]);
  return std::move(parts[0]);
}

}  // namespace quantry::engine
