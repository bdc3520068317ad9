// W3C Trace Context (https://www.w3.org/TR/trace-context/), as much of it as is
// handed on from a client to the worker that runs its job: `traceparent`,
// "00-{trace id, 32 hex}-{parent id, 16 hex}-{flags, 2 hex}".
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quantry {

// Name of the metadata entry and of the header.
inline constexpr char kTraceparentKey[] = "traceparent";

struct TraceContext {
  std::string trace_id;   // 32 lower-case hex digits, not all 0
  std::string parent_id;  // 16 lower-case hex digits, not all 0
  bool sampled = false;   // whoever started the trace wants spans recorded
};

// nullopt for anything the recommendation calls invalid: upper-case digits, ids
// of zeros, version ff, another length. Later versions may be longer.
std::optional<TraceContext> ParseTraceparent(std::string_view traceparent);
std::string FormatTraceparent(const TraceContext& context);

// A new trace with random ids.
TraceContext NewTrace(bool sampled);

// "" when `traceparent` is none.
std::string TraceIdOf(std::string_view traceparent);

}  // namespace quantry
