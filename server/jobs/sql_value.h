#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "common/clock.h"
#include "google/protobuf/message_lite.h"

// Values for the placeholders of a statement.
namespace quantry::server::sql {

struct Blob {
  std::string bytes;
};

// What a placeholder gets.
using Value = std::variant<std::nullptr_t, int64_t, std::string, Blob>;

inline Value Arg(int64_t value) { return value; }
inline Value Arg(int value) { return int64_t{value}; }
inline Value Arg(bool value) { return int64_t{value}; }
inline Value Arg(Time value) { return ToUnixMicros(value); }
inline Value Arg(Duration value) { return int64_t{value.count()}; }
inline Value Arg(const char* value) { return std::string(value); }
inline Value Arg(const std::string& value) { return value; }
inline Value Arg(std::string_view value) { return std::string(value); }
inline Value Arg(Blob value) { return value; }
inline Value Arg(std::nullptr_t) { return nullptr; }
inline Value Arg(const google::protobuf::MessageLite& value) {
  return Blob{value.SerializeAsString()};
}
template <typename T>
Value Arg(const std::optional<T>& value) {
  return value ? Arg(*value) : Value(nullptr);
}

}  // namespace quantry::server::sql
