#include "worker/engine/kernels/avx512_emulation.h"

#if __has_include(<simde/x86/avx512.h>)

#define QUANTRY_EMULATE_AVX512
#include "worker/engine/kernels/bit_kernel_avx512.h"

namespace quantry::engine {
namespace {

constexpr BitKernel kEmulated = {"avx512, emulated", BuildTables, Accumulate};

}  // namespace

const BitKernel* EmulatedAvx512BitKernel() { return &kEmulated; }

}  // namespace quantry::engine

#else

namespace quantry::engine {

const BitKernel* EmulatedAvx512BitKernel() { return nullptr; }

}  // namespace quantry::engine

#endif
