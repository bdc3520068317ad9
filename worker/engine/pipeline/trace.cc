#include "worker/engine/pipeline/trace.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/pipeline/job.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kTraceDigits = 32;
constexpr size_t kSpanDigits = 16;
constexpr size_t kLength = 3 + kTraceDigits + 1 + kSpanDigits + 1 + 2;
constexpr int kInternalSpan = 1;  // SPAN_KIND_INTERNAL of OTLP

bool IsId(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos &&
         text.find_first_not_of('0') != std::string_view::npos;
}

Json Attribute(const std::string& key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}
Json Attribute(const std::string& key, int64_t value) {
  return {{"key", key}, {"value", {{"intValue", std::to_string(value)}}}};
}
Json Attribute(const std::string& key, double value) {
  return {{"key", key}, {"value", {{"doubleValue", value}}}};
}

std::string UnixNanos(double seconds) {
  return std::to_string(static_cast<int64_t>(std::llround(seconds * 1e9)));
}

// Builds the list; position 0 is the run itself.
class Spans {
 public:
  Spans(const Job& job, const TraceParent& parent, double to_unix)
      : parent_(parent),
        to_unix_(to_unix),
        seed_(StrCat(parent.trace_id, " ", parent.parent_id, " ", job.uid, " ", job.epoch)) {}

  std::string IdOf(size_t position) const {
    return Sha256OfText(StrCat(seed_, " ", position)).substr(0, kSpanDigits);
  }

  Json Make(size_t position, const std::string& parent_id, const Span& span,
            const Json& attributes) const {
    return {{"traceId", parent_.trace_id},
            {"spanId", IdOf(position)},
            {"parentSpanId", parent_id},
            {"name", span.name},
            {"kind", kInternalSpan},
            {"startTimeUnixNano", UnixNanos(span.begin + to_unix_)},
            {"endTimeUnixNano", UnixNanos(span.end + to_unix_)},
            {"attributes", attributes}};
  }

 private:
  const TraceParent& parent_;
  const double to_unix_;
  const std::string seed_;
};

Json AttributesOf(const Span& span) {
  Json attributes = Json::array();
  if (span.block >= 0) attributes.push_back(Attribute("quantry.block", int64_t{span.block}));
  for (const auto& [name, value] : span.figures) {
    if (std::isfinite(value)) attributes.push_back(Attribute("quantry." + name, value));
  }
  return attributes;
}

Json RunAttributes(const Job& job) {
  return Json::array({Attribute("quantry.job", job.name), Attribute("quantry.job_uid", job.uid),
                      Attribute("quantry.epoch", job.epoch),
                      Attribute("quantry.method", job.method_row->name)});
}

}  // namespace

std::optional<TraceParent> ParseTraceParent(std::string_view text) {
  if (text.size() < kLength || text.substr(0, 3) != "00-") return std::nullopt;
  TraceParent parent;
  parent.trace_id = std::string(text.substr(3, kTraceDigits));
  parent.parent_id = std::string(text.substr(3 + kTraceDigits + 1, kSpanDigits));
  if (!IsId(parent.trace_id) || !IsId(parent.parent_id)) return std::nullopt;
  constexpr std::string_view kOddDigits = "13579bdf";
  parent.sampled = kOddDigits.find(text[kLength - 1]) != std::string_view::npos;
  return parent;
}

std::string TraceJson(const Job& job, const TraceParent& parent, const std::vector<Span>& spans,
                      double to_unix) {
  const Spans make(job, parent, to_unix);
  Span run{.name = "quantry-engine run"};
  if (!spans.empty()) run.begin = spans.front().begin;
  for (const Span& span : spans) run.end = std::max(run.end, span.end);
  Json list = Json::array({make.Make(0, parent.parent_id, run, RunAttributes(job))});
  std::string stage = make.IdOf(0);
  for (size_t i = 0; i < spans.size(); ++i) {
    const bool in_stage = spans[i].block >= 0;
    list.push_back(
        make.Make(i + 1, in_stage ? stage : make.IdOf(0), spans[i], AttributesOf(spans[i])));
    if (!in_stage) stage = make.IdOf(i + 1);
  }
  const Json scope = {{"name", "quantry.engine"}, {"version", QUANTRY_VERSION}};
  const Json resource = {
      {"attributes", Json::array({Attribute("service.name", std::string("quantry-engine")),
                                  Attribute("service.version", std::string(QUANTRY_VERSION))})}};
  const Json scoped = {{"scope", scope}, {"spans", list}};
  const Json whole = {{"resourceSpans", Json::array({{{"resource", resource},
                                                      {"scopeSpans", Json::array({scoped})}}})}};
  return whole.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::optional<HashedFile> WriteTrace(const Job& job, const std::vector<Span>& spans,
                                     double to_unix) {
  const std::string path = job.output_dir + "/report/trace.json";
  std::error_code ignored;
  std::filesystem::remove(path, ignored);  // of an earlier run
  const auto parent = ParseTraceParent(job.traceparent);
  if (!parent || !parent->sampled) return std::nullopt;
  std::filesystem::create_directories(job.output_dir + "/report", ignored);
  const std::string text = TraceJson(job, *parent, spans, to_unix);
  WriteFileAtomically(path, text);
  return HashedFile{"report/trace.json", text.size(), Sha256OfText(text)};
}

}  // namespace quantry::engine
