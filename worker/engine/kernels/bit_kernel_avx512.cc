// The AVX-512 kernel. Compiled on every x86-64 through function attributes and
// chosen at run time, so that one binary serves all machines.
#include "worker/engine/kernels/bit_kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "worker/engine/kernels/bit_kernel_avx512.h"

namespace quantry::engine {
namespace {

constexpr BitKernel kAvx512 = {"avx512", BuildTables, Accumulate};

}  // namespace

const BitKernel* Avx512BitKernel() {
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  return has ? &kAvx512 : nullptr;
}

}  // namespace quantry::engine

#else

namespace quantry::engine {

const BitKernel* Avx512BitKernel() { return nullptr; }

}  // namespace quantry::engine

#endif
