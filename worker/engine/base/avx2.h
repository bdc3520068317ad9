#pragma once

// Vectors of eight floats for the AVX2 kernels. Functions that use them carry
// QUANTRY_AVX2, so that one binary serves every x86-64, and are called only
// where HasAvx2().
#if defined(__x86_64__) && defined(__GNUC__)
#define QUANTRY_AVX2 __attribute__((target("avx2,fma"), optimize("O3")))
#define QUANTRY_AVX2_INLINE __attribute__((target("avx2,fma"), always_inline)) inline
#include <immintrin.h>

#include <cstdint>

namespace quantry::engine {

inline bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

QUANTRY_AVX2_INLINE float Sum8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

// The first `count` (1 .. 8) lanes.
QUANTRY_AVX2_INLINE __m256i Lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Eight values, or the `left` that remain (the other lanes 0). Masks at the end
// of a row only: many CPUs take tens of cycles for a masked store.
QUANTRY_AVX2_INLINE __m256 Load(const float* from, int64_t left) {
  return left >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, Lanes(left));
}
QUANTRY_AVX2_INLINE void Store(float* to, int64_t left, __m256 x) {
  if (left >= 8) {
    _mm256_storeu_ps(to, x);
  } else {
    _mm256_maskstore_ps(to, Lanes(left), x);
  }
}

}  // namespace quantry::engine

#else

namespace quantry::engine {
inline bool HasAvx2() { return false; }
}  // namespace quantry::engine

#endif
