#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace quantry::engine {

// Between these lines of a report a reader may put what was measured of one
// run (times, memory), which the file itself cannot hold; see
// docs/formats/report.md.
inline constexpr char kMeasuredBegin[] = "<!-- quantry:measured -->\n";
inline constexpr char kMeasuredEnd[] = "<!-- /quantry:measured -->\n";

// ReportJson as one HTML file: no script, nothing loaded, dark and light. Text
// of the report is escaped; `plot_svg` (LinePlotSvg, "" = none) is put in as it
// is. The same report gives the same bytes.
std::string ReportHtml(const nlohmann::ordered_json& report, const std::string& plot_svg);

}  // namespace quantry::engine
