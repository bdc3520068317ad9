#include "worker/engine/reconstruct/group_kernels.h"

#include "worker/engine/base/avx2.h"
#include "worker/engine/reconstruct/adam.h"
#include "worker/engine/reconstruct/rectified_sigmoid.h"

// One body, compiled for several instruction sets; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__)
#define QUANTRY_CLONES __attribute__((target_clones("arch=haswell", "default"), optimize("O3")))
#else
#define QUANTRY_CLONES
#endif

namespace quantry::engine {
namespace {
constexpr int kLanes = 16;

void StepPlain(const LogitStep& step, int64_t count, const LogitRows& rows) {
  const AdamStep adam{step.mean_correction, step.square_correction};
  const float narrow = 1.0F / step.width;
  for (int64_t i = 0; i < count; ++i) {
    const float slope = rows.slopes[i] * RectifiedSigmoidSlope(rows.nu[i] * narrow);
    rows.nu[i] -= step.rate * adam.Direction(slope, rows.mean[i], rows.square[i]);
    rows.value[i] = step.width * RectifiedSigmoid(rows.nu[i] * narrow) + step.lowest;
  }
}

void ValuesPlain(float width, float lowest, int64_t count, const float* nu, float* value) {
  const float narrow = 1.0F / width;
  for (int64_t i = 0; i < count; ++i) {
    value[i] = width * RectifiedSigmoid(nu[i] * narrow) + lowest;
  }
}

#if defined(__x86_64__) && defined(__GNUC__)

QUANTRY_AVX2_INLINE __m256 Sigmoid8(__m256 t) {
  const __m256 one = _mm256_set1_ps(1.0F);
  return _mm256_div_ps(one, _mm256_add_ps(one, Exp8(_mm256_sub_ps(_mm256_setzero_ps(), t))));
}

QUANTRY_AVX2_INLINE __m256 Stretched8(__m256 sigmoid) {
  return _mm256_fmsub_ps(_mm256_set1_ps(kSigmoidStretch), sigmoid, _mm256_set1_ps(kSigmoidShift));
}

// dL/dt at rsig(t), 0 where the clamp holds.
QUANTRY_AVX2_INLINE __m256 SlopeOf(__m256 t, __m256 slope) {
  const __m256 one = _mm256_set1_ps(1.0F);
  const __m256 sigmoid = Sigmoid8(t);
  const __m256 value = Stretched8(sigmoid);
  const __m256 inside = _mm256_and_ps(_mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_GE_OQ),
                                      _mm256_cmp_ps(value, one, _CMP_LE_OQ));
  const __m256 bend = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(kSigmoidStretch), sigmoid),
                                    _mm256_sub_ps(one, sigmoid));
  return _mm256_mul_ps(slope, _mm256_and_ps(bend, inside));
}

// rsig(t); NaN stays NaN.
QUANTRY_AVX2_INLINE __m256 Rectified8(__m256 t) {
  const __m256 value = _mm256_min_ps(_mm256_max_ps(Stretched8(Sigmoid8(t)), _mm256_setzero_ps()),
                                     _mm256_set1_ps(1.0F));
  return _mm256_blendv_ps(value, t, _mm256_cmp_ps(t, t, _CMP_UNORD_Q));
}

// h(nu), see RoundingWindow.
QUANTRY_AVX2_INLINE __m256 Value8(float width, float lowest, __m256 nu) {
  const __m256 value = Rectified8(_mm256_mul_ps(nu, _mm256_set1_ps(1.0F / width)));
  return _mm256_fmadd_ps(_mm256_set1_ps(width), value, _mm256_set1_ps(lowest));
}

// Eight logits, or the `left` that remain.
QUANTRY_AVX2_INLINE void StepEight(const LogitStep& step, int64_t i, int64_t left,
                                   const LogitRows& rows) {
  const auto rest1 = _mm256_set1_ps(static_cast<float>(1.0 - kAdamBeta1));
  const auto rest2 = _mm256_set1_ps(static_cast<float>(1.0 - kAdamBeta2));
  const __m256 narrow = _mm256_set1_ps(1.0F / step.width);
  __m256 nu = Load(rows.nu + i, left);
  const __m256 slope = SlopeOf(_mm256_mul_ps(nu, narrow), Load(rows.slopes + i, left));
  __m256 mean = Load(rows.mean + i, left);
  mean = _mm256_fmadd_ps(_mm256_sub_ps(slope, mean), rest1, mean);
  __m256 square = Load(rows.square + i, left);
  square = _mm256_fmadd_ps(_mm256_mul_ps(slope, slope), rest2,
                           _mm256_mul_ps(square, _mm256_set1_ps(static_cast<float>(kAdamBeta2))));
  const __m256 size =
      _mm256_fmadd_ps(_mm256_sqrt_ps(square), _mm256_set1_ps(step.square_correction),
                      _mm256_set1_ps(static_cast<float>(kAdamEpsilon)));
  const __m256 direction =
      _mm256_div_ps(_mm256_mul_ps(mean, _mm256_set1_ps(step.mean_correction)), size);
  nu = _mm256_fnmadd_ps(_mm256_set1_ps(step.rate), direction, nu);
  Store(rows.nu + i, left, nu);
  Store(rows.mean + i, left, mean);
  Store(rows.square + i, left, square);
  Store(rows.value + i, left, Value8(step.width, step.lowest, nu));
}

QUANTRY_AVX2 void StepAvx2(const LogitStep& step, int64_t count, const LogitRows& rows) {
  for (int64_t i = 0; i < count; i += 8) StepEight(step, i, count - i, rows);
}

QUANTRY_AVX2 void ValuesAvx2(float width, float lowest, int64_t count, const float* nu,
                             float* value) {
  for (int64_t i = 0; i < count; i += 8) {
    Store(value + i, count - i, Value8(width, lowest, Load(nu + i, count - i)));
  }
}

#else
void StepAvx2(const LogitStep&, int64_t, const LogitRows&) {}
void ValuesAvx2(float, float, int64_t, const float*, float*) {}
#endif

}  // namespace

QUANTRY_CLONES float DotGroup(const float* a, const float* b, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lanes[k] += a[i + k] * b[i + k];
  }
  float sum = 0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

void StepLogits(const LogitStep& step, int64_t count, const LogitRows& rows) {
  if (HasAvx2()) {
    StepAvx2(step, count, rows);
  } else {
    StepPlain(step, count, rows);
  }
}

void LogitValues(float width, float lowest, int64_t count, const float* nu, float* value) {
  if (HasAvx2()) {
    ValuesAvx2(width, lowest, count, nu, value);
  } else {
    ValuesPlain(width, lowest, count, nu, value);
  }
}

QUANTRY_CLONES void ScaleGroup(const float* values, int64_t count, float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = values[i] * scale;
}

}  // namespace quantry::engine
