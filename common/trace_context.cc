#include "common/trace_context.h"

#include <algorithm>

#include "common/ids.h"

namespace quantry {
namespace {

constexpr size_t kVersionDigits = 2;
constexpr size_t kTraceDigits = 32;
constexpr size_t kParentDigits = 16;
constexpr size_t kTraceAt = kVersionDigits + 1;
constexpr size_t kParentAt = kTraceAt + kTraceDigits + 1;
constexpr size_t kFlagsAt = kParentAt + kParentDigits + 1;
constexpr size_t kLength = kFlagsAt + 2;
// A later version's traceparent that is longer than this is no header.
constexpr size_t kMaxLength = 512;
constexpr int kSampledFlag = 1;

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool IsId(std::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != std::string_view::npos;
}

int Digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

std::string RandomHex() {
  std::string hex = NewUuid4();
  hex.erase(std::remove(hex.begin(), hex.end(), '-'), hex.end());
  return hex;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view text) {
  if (text.size() < kLength || text.size() > kMaxLength) return std::nullopt;
  const std::string_view version = text.substr(0, kVersionDigits);
  const std::string_view flags = text.substr(kFlagsAt, 2);
  if (!IsHex(version) || version == "ff" || !IsHex(flags)) return std::nullopt;
  if (text[kTraceAt - 1] != '-' || text[kParentAt - 1] != '-' || text[kFlagsAt - 1] != '-') {
    return std::nullopt;
  }
  if (text.size() > kLength && (version == "00" || text[kLength] != '-')) return std::nullopt;
  TraceContext context{.trace_id = std::string(text.substr(kTraceAt, kTraceDigits)),
                       .parent_id = std::string(text.substr(kParentAt, kParentDigits)),
                       .sampled = (Digit(flags[1]) & kSampledFlag) != 0};
  if (!IsId(context.trace_id) || !IsId(context.parent_id)) return std::nullopt;
  return context;
}

std::string FormatTraceparent(const TraceContext& context) {
  return "00-" + context.trace_id + "-" + context.parent_id + (context.sampled ? "-01" : "-00");
}

TraceContext NewTrace(bool sampled) {
  return {.trace_id = RandomHex(),
          .parent_id = RandomHex().substr(0, kParentDigits),
          .sampled = sampled};
}

std::string TraceIdOf(std::string_view traceparent) {
  const auto context = ParseTraceparent(traceparent);
  return context ? context->trace_id : "";
}

}  // namespace quantry
