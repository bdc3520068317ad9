#include "common/log.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <memory>
#include <utility>

#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace quantry::log {
namespace {

// A value longer than this is cut: logs are lines, not dumps.
constexpr size_t kMaxValueBytes = 4096;

std::atomic<Format> g_format{Format::kText};
thread_local std::string t_trace_id;

// Never destroyed: threads may log while the process exits.
spdlog::logger& Logger() {
  static spdlog::logger* const logger = [] {
    auto* created =
        new spdlog::logger("quantry", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    created->set_pattern("%v");
    created->set_level(spdlog::level::info);
    created->flush_on(spdlog::level::trace);
    return created;
  }();
  return *logger;
}

std::string_view LevelName(Level level, Format format) {
  const bool json = format == Format::kJson;
  switch (level) {
    case Level::kDebug:
      return json ? "debug" : "DEBUG";
    case Level::kInfo:
      return json ? "info" : "INFO";
    case Level::kWarning:
      return json ? "warning" : "WARNING";
    case Level::kError:
      return json ? "error" : "ERROR";
    case Level::kAudit:
      return json ? "audit" : "AUDIT";
  }
  return "";
}

spdlog::level::level_enum ToSpdlog(Level level) {
  switch (level) {
    case Level::kDebug:
      return spdlog::level::debug;
    case Level::kInfo:
      return spdlog::level::info;
    case Level::kWarning:
      return spdlog::level::warn;
    case Level::kError:
      return spdlog::level::err;
    case Level::kAudit:
      break;
  }
  return spdlog::level::critical;  // above every level that can be configured
}

// Escapes as in a JSON string; good for text too.
void AppendEscaped(std::string_view text, std::string* out) {
  const bool cut = text.size() > kMaxValueBytes;
  for (const char c : text.substr(0, kMaxValueBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (byte < 0x20 || byte == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", byte);
      out->append(escaped);
    } else {
      out->push_back(c);
    }
  }
  if (cut) out->append("...");
}

void AppendQuoted(std::string_view text, std::string* out) {
  out->push_back('"');
  AppendEscaped(text, out);
  out->push_back('"');
}

bool NeedsQuotes(std::string_view value) {
  if (value.empty()) return true;
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= 0x20 || byte == 0x7f || c == '"' || c == '\\' || c == '=') return true;
  }
  return false;
}

std::string Timestamp() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  const std::time_t seconds = ms / 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[40];
  const size_t size = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(text + size, sizeof text - size, ".%03dZ", static_cast<int>(ms % 1000));
  return text;
}

void Write(Level level, std::string_view message, Fields fields) {
  const auto spdlog_level = ToSpdlog(level);
  if (!Logger().should_log(spdlog_level)) return;
  const std::string line =
      FormatLine(g_format.load(), level, Timestamp(), message, fields, t_trace_id);
  Logger().log(spdlog_level, spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace

TraceScope::TraceScope(std::string_view trace_id)
    : outer_(std::exchange(t_trace_id, std::string(trace_id))) {}

TraceScope::~TraceScope() { t_trace_id = std::move(outer_); }

Field::Field(std::string_view k, double v) : key(k), raw(std::isfinite(v)) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", v);
  value = text;
}

absl::Status Configure(std::string_view format, std::string_view level) {
  Level parsed = Level::kInfo;
  if (format != "text" && format != "json") {
    return absl::InvalidArgumentError("log_format: wanted text or json, got '" +
                                      std::string(format) + "'");
  }
  if (level == "debug") {
    parsed = Level::kDebug;
  } else if (level == "warning") {
    parsed = Level::kWarning;
  } else if (level == "error") {
    parsed = Level::kError;
  } else if (level != "info") {
    return absl::InvalidArgumentError("log_level: wanted debug, info, warning or error, got '" +
                                      std::string(level) + "'");
  }
  g_format = format == "json" ? Format::kJson : Format::kText;
  Logger().set_level(ToSpdlog(parsed));
  return absl::OkStatus();
}

void Debug(std::string_view message, Fields fields) { Write(Level::kDebug, message, fields); }
void Info(std::string_view message, Fields fields) { Write(Level::kInfo, message, fields); }
void Warning(std::string_view message, Fields fields) { Write(Level::kWarning, message, fields); }
void Error(std::string_view message, Fields fields) { Write(Level::kError, message, fields); }
void Audit(Fields fields) { Write(Level::kAudit, "audit", fields); }

namespace {

void AppendJson(const Field& field, std::string* line) {
  line->push_back(',');
  AppendQuoted(field.key, line);
  line->push_back(':');
  if (field.raw) {
    line->append(field.value);
  } else {
    AppendQuoted(field.value, line);
  }
}

void AppendText(const Field& field, std::string* line) {
  line->append(" ").append(field.key).append("=");
  if (NeedsQuotes(field.value)) {
    AppendQuoted(field.value, line);
  } else {
    AppendEscaped(field.value, line);
  }
}

}  // namespace

std::string FormatLine(Format format, Level level, std::string_view timestamp,
                       std::string_view message, Fields fields, std::string_view trace_id) {
  std::string line;
  const bool json = format == Format::kJson;
  if (json) {
    line.append("{\"ts\":").append("\"").append(timestamp).append("\",\"level\":\"");
    line.append(LevelName(level, format)).append("\",\"message\":");
    AppendQuoted(message, &line);
  } else {
    line.append(timestamp).append(" ").append(LevelName(level, format)).append(" ");
    AppendEscaped(message, &line);
  }
  const auto append = json ? AppendJson : AppendText;
  for (const Field& field : fields) append(field, &line);
  if (!trace_id.empty()) append({"trace_id", trace_id}, &line);
  if (json) line.push_back('}');
  return line;
}

}  // namespace quantry::log
