#include <map>

#include "client/cli/format.h"
#include "client/cli/job_report.h"
#include "client/cli/text.h"
#include "common/markup.h"

namespace quantry::cli {
namespace {

// The gap in report/report.html; docs/formats/report.md.
constexpr std::string_view kBegin = "<!-- quantry:measured -->\n";
constexpr std::string_view kEnd = "<!-- /quantry:measured -->\n";

std::string Escaped(std::string_view text) { return EscapeMarkup(Plain(text)); }

std::string Row(std::string_view name, std::string_view value) {
  return Cat("<tr><th>", Escaped(name), "</th><td>", Escaped(value), "</td></tr>\n");
}

std::string Measured(const v1::Manifest& manifest) {
  std::string html = "<div class=\"wide\"><table>\n";
  if (!manifest.job().empty()) html += Row("job", manifest.job());
  html += Row("made", Rfc3339(manifest.create_time()));
  html += Row("device", manifest.device());
  html += Row("memory at most", Bytes(manifest.peak_rss_bytes()));
  html += Row("time in all", Seconds(manifest.timing().run_s()));
  const auto& stages = manifest.timing().stages_s();
  for (const auto& [stage, seconds] : std::map<std::string, double>(stages.begin(), stages.end())) {
    html += Row(stage, Seconds(seconds));
  }
  for (int i = 0; i < manifest.timing().blocks_s_size(); ++i) {
    html += Row(Cat("block ", i), Seconds(manifest.timing().blocks_s(i)));
  }
  for (const std::string& warning : manifest.warnings()) html += Row("warning", warning);
  return html + "</table></div>\n";
}

}  // namespace

std::string JobReportHtml(const JobReport& report) {
  const size_t begin = report.html.find(kBegin);
  const size_t end = report.html.find(kEnd);
  if (begin == std::string::npos || end == std::string::npos || end < begin) return report.html;
  const size_t from = begin + kBegin.size();
  return report.html.substr(0, from) + Measured(report.manifest) + report.html.substr(end);
}

}  // namespace quantry::cli
