#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "client/cli/json.h"
#include "client/cli/options.h"
#include "quantry/v1/artifact.pb.h"

namespace quantry::cli {

// What is known of a finished job: from the server, or from a pulled folder.
struct JobReport {
  std::string source;     // as the user named it
  v1::Manifest manifest;  // by its hash when it came from a server
  Json report;            // report/report.json; null when the artifact has none
  std::string html;       // report/report.html, where it was asked for
};

// `source` is a folder with a manifest.json, else a job or an artifact. A name
// that is both is the folder; tenants/.../my-job is always the job.
// INVALID_ARGUMENT for a folder without manifest, or `with_html` of an artifact
// that holds no HTML report; DATA_LOSS ARTIFACT_CORRUPT when a file differs
// from the manifest.
absl::StatusOr<JobReport> LoadJobReport(Context& context, const std::string& source,
                                        bool with_html = false);

// Several lines: figures, times, then a table of the blocks.
std::string JobReportText(const JobReport& report);
// Keys of manifest.json (64-bit integers as numbers, `spec` instead of
// spec_json), and `reproduction` of report.json.
Json JobReportJson(const JobReport& report);
// The HTML report with the run's times and memory where the file has its gap.
std::string JobReportHtml(const JobReport& report);

// Two finished jobs side by side.
std::string ComparisonText(const JobReport& a, const JobReport& b);
// {"a", "b", "ratios" (b / a), "blocks", "differences"}.
Json ComparisonJson(const JobReport& a, const JobReport& b);

}  // namespace quantry::cli
