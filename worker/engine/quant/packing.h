#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace quantry::engine {

// dense(c, b), the one bit layout of packed codes and zero points (spec:
// formats.md 3.0): code i lies in bits [i*b, i*b + b) of a little-endian bit
// stream; bit p of the stream is bit p mod 32 of 32-bit word p / 32. Codes
// may straddle words (b = 3). Unused bits of the last word are 0.
//
//   word 0, b = 3:  |c10 (low 2)|c9 |c8 |...|c1 |c0 |
//                    31       30 29..27      5..3 2..0

// Words that `count` codes of `bits` bits take. bits: 1 .. 8.
int64_t PackedWords(int64_t count, int bits);

// One stream: `codes` of `count` bytes into PackedWords(count, bits) words.
// Every code must be below 2^bits (BUG otherwise).
void PackStream(const uint8_t* codes, int64_t count, int bits, uint32_t* words);
void UnpackStream(const uint32_t* words, int64_t count, int bits, uint8_t* codes);

// Every row its own stream along K.
//   codes uint8 [N, K] <-> int32 [N, PackedWords(K, bits)]
at::Tensor PackRows(const at::Tensor& codes, int bits);
at::Tensor UnpackRows(const at::Tensor& packed, int64_t columns, int bits);

// UnpackRows on any device, by ATen's operations alone. bits: 1, 2, 4 or 8.
//   bytes uint8 [N, at least columns * bits / 8], PackRows' words byte by byte -> uint8 [N,
//   columns]
at::Tensor UnpackBytes(const at::Tensor& bytes, int64_t columns, int bits);

// Every column its own stream along N (zero points of compressed-tensors).
//   values uint8 [N, G] <-> int32 [PackedWords(N, bits), G]
at::Tensor PackColumns(const at::Tensor& values, int bits);
at::Tensor UnpackColumns(const at::Tensor& packed, int64_t rows, int bits);

}  // namespace quantry::engine
