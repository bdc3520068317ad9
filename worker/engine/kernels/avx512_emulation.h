#pragma once

#include "worker/engine/kernels/bit_kernel.h"

namespace quantry::engine {

// The AVX-512 kernel with each intrinsic emulated by SIMDe, for tests on
// machines without AVX-512. nullptr where SIMDe was not there to compile with.
const BitKernel* EmulatedAvx512BitKernel();

}  // namespace quantry::engine
