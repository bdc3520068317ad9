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

// exp(x) for x <= 88: 2^n times a polynomial of the rest (Cephes' expf), to
// about one unit in the last place; 0 below -87.
QUANTRY_AVX2_INLINE __m256 Exp8(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.0F);
  const __m256 alive = _mm256_cmp_ps(x, low, _CMP_GE_OQ);
  x = _mm256_min_ps(_mm256_max_ps(x, low), _mm256_set1_ps(88.0F));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341F)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4F);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1F));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0F)));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), alive);
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
