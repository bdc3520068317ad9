// The process log: one line an entry on stderr, as text for people or as JSON
// for collectors, each with a time, a level, a message and key/values.
//
//   log::Warning("lease expired", {{"job", name}, {"epoch", epoch}});
//   text: 2026-01-02T03:04:05.678Z WARNING lease expired job=tenants/... epoch=3
//   json: {"ts":"2026-01-02T03:04:05.678Z","level":"warning","message":"lease expired",...}
//
// Control characters never reach the output raw, so hostile names cannot forge
// lines. Thread-safe; a line is written whole. Never log secrets or file
// contents. Until Configure is called: text, info.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace quantry::log {

enum class Format { kText, kJson };
// kAudit lines are written whatever the level configured.
enum class Level { kDebug, kInfo, kWarning, kError, kAudit };

// One key/value. `raw` values (numbers, booleans) are not quoted in JSON.
struct Field {
  Field(std::string_view k, std::string_view v) : key(k), value(v), raw(false) {}
  Field(std::string_view k, const char* v) : key(k), value(v), raw(false) {}
  Field(std::string_view k, const std::string& v) : key(k), value(v), raw(false) {}
  Field(std::string_view k, bool v) : key(k), value(v ? "true" : "false"), raw(true) {}
  template <std::integral Int>
  Field(std::string_view k, Int v) : key(k), value(std::to_string(v)), raw(true) {}
  Field(std::string_view k, double v);  // non-finite values are quoted

  std::string_view key;
  std::string value;
  bool raw;
};
using Fields = std::initializer_list<Field>;

// While it lives, every line this thread writes ends with the field trace_id;
// nothing when `trace_id` is "". The innermost scope counts.
class TraceScope {
 public:
  explicit TraceScope(std::string_view trace_id);
  ~TraceScope();
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  std::string outer_;
};

// `format`: "text" or "json"; `level`: "debug", "info", "warning", "error".
// INVALID_ARGUMENT for anything else. Call once, early in main.
absl::Status Configure(std::string_view format, std::string_view level);

void Debug(std::string_view message, Fields fields = {});
void Info(std::string_view message, Fields fields = {});
void Warning(std::string_view message, Fields fields = {});
void Error(std::string_view message, Fields fields = {});
// Who changed what: message "audit".
void Audit(Fields fields);

// The line that would be written, without its end; for tests.
std::string FormatLine(Format format, Level level, std::string_view timestamp,
                       std::string_view message, Fields fields, std::string_view trace_id = "");

}  // namespace quantry::log
