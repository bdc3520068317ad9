#pragma once

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <cstdint>

// clang-tidy has no omp.h, and fuzzers are of one thread.
#if !defined(INTRA_OP_PARALLEL) && !defined(__clang_analyzer__) && !defined(QUANTRY_PLAIN_LOOPS)
#error "at::parallel_for is a plain loop here: compile with -fopenmp (cmake/Torch.cmake)"
#endif

namespace quantry::engine {

// work(i) for 0 <= i < count on LibTorch's threads, each under the caller's settings (whether
// gradients are recorded). Where work itself starts parallel work, that is done by its one thread.
// Throws what one of them threw.
template <typename Work>
void ForEachInParallel(int64_t count, const Work& work) {
  const at::ThreadLocalState callers;
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const at::ThreadLocalStateGuard as_caller(callers);
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

// work(i) for 0 <= i < count in runs of equal length, each on one of LibTorch's threads: one run
// for `grain` of them or more. For plain loops: the caller's settings are not carried over. Where a
// run begins depends on the number of threads, so no two works add to the same number.
template <typename Work>
void ForEachIndex(int64_t count, int64_t grain, const Work& work) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

}  // namespace quantry::engine
