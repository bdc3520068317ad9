#pragma once

#include <concepts>
#include <optional>

namespace quantry::engine {

// a * b and a + b; nothing when the result does not fit.
template <std::integral T>
std::optional<T> CheckedMultiply(T a, T b) {
  T result;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

template <std::integral T>
std::optional<T> CheckedAdd(T a, T b) {
  T result;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

}  // namespace quantry::engine
