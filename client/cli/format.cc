#include "client/cli/format.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace quantry::cli {
namespace {

constexpr size_t kValueColumns = 80;

template <typename... Args>
std::string Printf(const char* format, Args... args) {
  std::array<char, 64> buffer;
  const int n = std::snprintf(buffer.data(), buffer.size(), format, args...);
  return std::string(buffer.data(), static_cast<size_t>(std::clamp(n, 0, 63)));
}

// Characters a terminal shows, not bytes: continuation bytes of UTF-8 are free.
size_t Width(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xc0) != 0x80; }));
}

std::string Pad(const std::string& text, size_t width) {
  const size_t have = Width(text);
  return have >= width ? text : text + std::string(width - have, ' ');
}

// Broken at blanks where a value grows too long; a word is never broken.
std::string Wrapped(const std::string& text, const std::string& indent) {
  std::string wrapped = text;
  size_t start = 0;
  while (wrapped.size() - start > kValueColumns) {
    size_t blank = wrapped.rfind(' ', start + kValueColumns);
    if (blank == std::string::npos || blank <= start) blank = wrapped.find(' ', start);
    if (blank == std::string::npos || blank <= start) break;
    wrapped.replace(blank, 1, "\n" + indent);
    start = blank + 1 + indent.size();
  }
  return wrapped;
}

}  // namespace

std::string Bytes(int64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000) return Printf("%lld B", static_cast<long long>(std::max<int64_t>(0, bytes)));
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  while (value >= 999.95 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return Printf("%.1f %s", value, kUnits[unit]);
}

std::string Percent(double ratio) {
  if (!std::isfinite(ratio)) ratio = 0;
  return Printf("%3d%%", static_cast<int>(std::floor(std::clamp(ratio, 0.0, 1.0) * 100)));
}

std::string Seconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 9.95) return Printf("%.1f s", seconds);
  if (seconds < 99.5) return Printf("%.0f s", seconds);
  const auto whole = static_cast<long long>(std::min(std::round(seconds), 1e12));
  if (whole < 3600) return Printf("%lldm %02llds", whole / 60, whole % 60);
  return Printf("%lldh %02lldm", whole / 3600, whole / 60 % 60);
}

std::string Number(double value, int significant) {
  return std::isfinite(value) ? Printf("%.*g", significant, value) : "n/a";
}

std::string Rfc3339(const google::protobuf::Timestamp& time) {
  using google::protobuf::util::TimeUtil;
  if (time.seconds() == 0 && time.nanos() == 0) return "";
  // TimeUtil aborts on times outside year 1..9999; a server's value may be any.
  if (time.seconds() < TimeUtil::kTimestampMinSeconds ||
      time.seconds() > TimeUtil::kTimestampMaxSeconds || time.nanos() < 0 ||
      time.nanos() > 999'999'999) {
    return "invalid";
  }
  google::protobuf::Timestamp shown = time;
  shown.set_nanos(time.nanos() / 1'000'000 * 1'000'000);
  return TimeUtil::ToString(shown);
}

std::string Age(const google::protobuf::Timestamp& time,
                std::chrono::system_clock::time_point now) {
  if (time.seconds() == 0) return "";
  const long long s =
      std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count() -
      time.seconds();
  if (s < 1) return "now";
  if (s < 120) return Printf("%lld s", s);
  if (s < 7200) return Printf("%lld m", s / 60);
  if (s < 172800) return Printf("%lld h", s / 3600);
  return Printf("%lld d", s / 86400);
}

std::string Ago(const google::protobuf::Timestamp& time,
                std::chrono::system_clock::time_point now) {
  const std::string age = Age(time, now);
  return age.empty() || age == "now" ? age : age + " ago";
}

std::string Plain(std::string_view text) {
  std::string plain(text);
  std::replace_if(
      plain.begin(), plain.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  return plain;
}

std::string Table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += i + 1 < row.size() ? Pad(row[i], widths[i] + 2) : row[i];
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string Fields(const std::vector<std::pair<std::string, std::string>>& fields) {
  size_t width = 0;
  for (const auto& field : fields) width = std::max(width, Width(field.first));
  std::string text;
  const std::string indent(width + 4, ' ');
  for (const auto& [name, value] : fields) {
    text += "  " + Pad(name, width + 2) + Wrapped(value, indent) + "\n";
  }
  return text;
}

}  // namespace quantry::cli
