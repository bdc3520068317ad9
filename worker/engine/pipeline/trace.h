#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/progress.h"

namespace quantry::engine {

struct Job;

// What a W3C traceparent says. Ids are lower-case hex.
struct TraceParent {
  std::string trace_id;   // 32 digits
  std::string parent_id;  // 16 digits
  bool sampled = false;   // whoever started the trace wants spans
};

// nullopt when it is none; who made the job has checked it already.
std::optional<TraceParent> ParseTraceParent(std::string_view traceparent);

// The spans of one run as one OTLP/JSON ExportTraceServiceRequest: the run, its
// stages, its blocks. `to_unix`: what turns seconds of the spans' clock into
// Unix time. Span ids follow from trace, job, attempt and position.
std::string TraceJson(const Job& job, const TraceParent& parent, const std::vector<Span>& spans,
                      double to_unix);

// Writes OUTPUT_DIR/report/trace.json when the job's trace is sampled; nothing
// otherwise, nullopt then. It holds measured times, so no two runs write the same.
std::optional<HashedFile> WriteTrace(const Job& job, const std::vector<Span>& spans,
                                     double to_unix);

}  // namespace quantry::engine
