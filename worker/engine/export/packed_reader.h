#pragma once

#include <ATen/ATen.h>

#include <string>

#include "worker/engine/quant/quantized_linear.h"

namespace quantry::engine {

// The reading side of packed outputs: takes each code out of the bytes at its
// bit position, apart from quant/packing, which wrote them, so that a mistake
// in one is seen by the other. Throws EngineError "OUTPUT_VERIFICATION_FAILED"
// when a shape or dtype is not what the codes need.

// int32 [N, ceil(K b / 32)] -> uint8 [N, K], dense along K.
at::Tensor ReadPackedRows(const at::Tensor& packed, int64_t columns, int bits);

// int32 [ceil(N b / 32), G] -> uint8 [N, G], dense along N.
at::Tensor ReadPackedColumns(const at::Tensor& packed, int64_t rows, int bits);

// First difference between what was read and what was meant: codes, scales (in
// their own dtype, or as `stored` has them) and zero points, bit for bit. Empty
// when there is none.
std::string CompareIntegers(const at::Tensor& codes, const at::Tensor& scales,
                            const at::Tensor& zeros, const QuantizedLinear& expected);
std::string CompareIntegers(const at::Tensor& codes, const at::Tensor& scales,
                            const at::Tensor& zeros, const QuantizedLinear& expected,
                            at::ScalarType stored);
std::string CompareScales(const at::Tensor& scales, const QuantizedLinear& expected,
                          at::ScalarType stored);

// What a reader was given does not fit: EngineError OUTPUT_VERIFICATION_FAILED.
[[noreturn]] void FailRead(const std::string& message);

// Whether they are F16, BF16 or F32, which readers count with.
bool HoldsNumbers(const at::Tensor& values);

// Refuses other types, NaN and infinity in what a reader multiplies by: scales and gains.
void CheckFiniteValues(const std::string& name, const at::Tensor& values);

// Whether two tensors have the same dtype, shape and bytes.
bool SameBytes(const at::Tensor& a, const at::Tensor& b);

}  // namespace quantry::engine
