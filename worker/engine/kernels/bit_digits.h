#pragma once

#include "worker/engine/kernels/bit_kernel.h"

namespace quantry::engine {

// How the AVX2 and the AVX-512 kernel cut a table's entries so that a byte
// shuffle can look them up. An entry has 24 bits, four digits of six; the table
// of a group is
//
//   digit 0 of entries 0 .. 15 | digit 1 ... | digit 2 ... | digit 3 ...
//
// one byte each, 16 bytes a digit, digit 0 the lowest.
constexpr int kDigits = 4;
constexpr int kDigitBits = 6;
constexpr int64_t kDigitBytes = 16;  // of one digit of all entries
static_assert(kDigits * kDigitBits >= kValueBits + 2, "an entry is a sum of four values");
static_assert(kDigits * kDigitBytes == kTableBytes, "a table is four digits of 16 entries");

// Four digits add up in a byte: those of the four groups of two byte columns.
// Sums of kMaxByteColumns / 2 such bytes stand in 16-bit lanes (64 * 252 =
// 16,128), which must stay positive when multiplied as signed ones.
static_assert(4 * ((1 << kDigitBits) - 1) < 256, "digit sums overflow a byte");
static_assert(kMaxByteColumns / 2 * 4 * ((1 << kDigitBits) - 1) < 32768, "digit sums overflow");

// The sum of a row's 2 * kMaxByteColumns entries has 32 bits, unsigned.
static_assert(2 * kMaxByteColumns * ((int64_t{1} << (kValueBits + 2)) - 4) < int64_t{1} << 32,
              "row sums overflow");

}  // namespace quantry::engine
