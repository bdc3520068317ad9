#pragma once

#include <cstdint>

namespace quantry::engine {

// The AVX2 kernels of SignProduct, a block of tokens at a time. With the tokens
// in the lanes, all 16 signed sums of four columns are made once; each row then
// adds the one its four signs ask for: an addition where a plain product takes
// four multiply-adds ("method of the Four Russians").

constexpr int kSignTokens = 32;   // of a block
constexpr int kSignsPerCode = 4;  // bit b of code g: sign of column 4 g + b, 1 = +1

// How columns are summed. kFixed: rounded to 16-bit integers, which takes half the
// additions. All columns of a table (96) and a token share a scale, with which the
// sum of their sizes fills the integers: a rounding is less than 1/65,000 of that sum,
// for columns of like size about what bfloat16 would round.
enum class SignSums { kFloat, kFixed };

// A matrix of signs [rows, columns].
struct SignCodes {
  const uint8_t* codes;  // [rows, groups()]
  int64_t rows;
  int64_t columns;

  int64_t groups() const { return (columns + kSignsPerCode - 1) / kSignsPerCode; }
};

// Rows of a tile of sums: whole vectors.
constexpr int64_t SignTileRows(int64_t rows) { return (rows + 7) / 8 * 8; }

// Up to kSignTokens rows of a matrix; `count` of them exist.
struct TokenRows {
  float* data;
  int64_t row;  // entries from one token to the next
  int64_t count;
};

// Numbers of the weight r2^T * (A S + C), spec: ptq161.md 3.4.
struct SignScales {
  const float* gain;    // A [n]
  const float* offset;  // C [n]
  const float* column;  // r2 [m]
};

// tile [SignTileRows(n), kSignTokens] = S (r2 x)^T, total [kSignTokens] = r2 . x,
// y += A tile^T + total C^T. x [count, m], y [count, n].
void SignForwardBlock(SignSums sums, const SignCodes& signs, const SignScales& scales,
                      const TokenRows& x, const TokenRows& y, float* tile, float* total);

// What the backward pass of a block leaves; sums over its tokens.
struct SignSlopes {
  float* gain;    // dL/dA [n]
  float* offset;  // dL/dC [n]
  float* column;  // dL/dr2 [m]
};

// With g = dL/dy [count, n], and tile and total of the forward pass: dL/dx to
// `x_slope` [count, m] unless its data is null, and the others. `signs` are
// those of S^T [m, n]; `scratch` is [SignTileRows(m), kSignTokens].
void SignBackwardBlock(SignSums sums, const SignCodes& signs, const SignScales& scales,
                       const TokenRows& g, const TokenRows& x, const float* tile,
                       const float* total, float* scratch, const TokenRows& x_slope,
                       const SignSlopes& slopes);

}  // namespace quantry::engine
