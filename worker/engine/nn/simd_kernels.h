#pragma once

#include <cstdint>

namespace quantry::engine::simd {

// Small dense kernels for AVX2 with FMA. Call only where Available().
bool Available();

// An operand whose entry (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row;
  int64_t column;
};

// c[i * c_row + j] = (add ? c : 0) + sum over l of a(i, l) b[l * b_row + j],
// i < m, j < n, l < k.
void MultiplyAdd(int64_t m, int64_t n, int64_t k, Matrix a, const float* b, int64_t b_row, float* c,
                 int64_t c_row, bool add);

// row[j] = exp((row[j] - max over j of row[j]) * scale), the largest exactly 1;
// returns their sum, and the maximum through `largest`.
float ExpRow(float* row, int64_t count, float scale, float* largest);
// row[j] = exp((row[j] - shift) * scale)
void ExpShifted(float* row, int64_t count, float scale, float shift);
void Scale(float* row, int64_t count, float factor);
float Dot(const float* a, const float* b, int64_t count);
// sum of (a[j] - b[j])^2
float SquaredDistance(const float* a, const float* b, int64_t count);
// gradient[j] = probability[j] * (gradient[j] - mean) * scale
void SoftmaxSlope(const float* probability, float* gradient, int64_t count, float mean,
                  float scale);

// out = silu(gate) * up, silu(x) = x / (1 + exp(-x))
void GatedSilu(const float* gate, const float* up, int64_t count, float* out);
// slopes of the above along `slope`
void GatedSiluSlope(const float* gate, const float* up, const float* slope, int64_t count,
                    float* gate_slope, float* up_slope);

// out[j] = a[j] * b[j] * factor
void MultiplyScaled(const float* a, const float* b, int64_t count, float factor, float* out);
// out[j] += a[j] * factor
void AddScaled(const float* a, int64_t count, float factor, float* out);
// out[j] = the sum of three rows, each times its factor
struct Weighted {
  const float* row;
  float factor;
};
void WeightedSum(Weighted a, Weighted b, Weighted c, int64_t count, float* out);
// to[c * rows + r] = from[r * stride + c], r < rows, c < columns
void Transpose(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to);
// out[j] = x[j] cos[j] - sign x[j + d/2] sin[j] in the first half of a row,
// x[j] cos[j] + sign x[j - d/2] sin[j] in the second (halves of cos and of sin
// are equal).
void RotateRow(const float* x, const float* cos, const float* sin, int64_t dim, float sign,
               float* out);

}  // namespace quantry::engine::simd
