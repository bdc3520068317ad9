#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <ostream>

#include "client/cli/commands/commands.h"
#include "client/cli/job_report.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr char kSourceHelp[] =
    "A job that has ended, an artifact's uid or name, or the folder it was pulled into";

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text << std::flush;
  if (out) return absl::OkStatus();
  return absl::InvalidArgumentError(Cat("--html: cannot write \"", path, "\""));
}

struct ReportArguments {
  std::string source;
  std::string html;
};

absl::StatusOr<ExitCode> RunReport(Context& context, const ReportArguments& arguments) {
  const absl::StatusOr<JobReport> report =
      LoadJobReport(context, arguments.source, !arguments.html.empty());
  if (!report.ok()) return report.status();
  if (!arguments.html.empty()) {
    absl::Status status = WriteText(arguments.html, JobReportHtml(*report));
    if (!status.ok()) return status;
  }
  if (context.global.json()) {
    Json json = JobReportJson(*report);
    if (!arguments.html.empty()) json["html"] = arguments.html;
    context.env.out << Dump(json, context.env.out_is_terminal);
  } else if (!context.global.quiet) {
    context.env.out << JobReportText(*report);
  }
  return ExitCode::kOk;
}

struct CompareArguments {
  std::string a;
  std::string b;
};

absl::StatusOr<ExitCode> RunCompare(Context& context, const CompareArguments& arguments) {
  const absl::StatusOr<JobReport> a = LoadJobReport(context, arguments.a);
  if (!a.ok()) return a.status();
  const absl::StatusOr<JobReport> b = LoadJobReport(context, arguments.b);
  if (!b.ok()) return b.status();
  if (context.global.json()) {
    context.env.out << Dump(ComparisonJson(*a, *b), context.env.out_is_terminal);
  } else {
    context.env.out << ComparisonText(*a, *b);
  }
  return ExitCode::kOk;
}

}  // namespace

void AddReport(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("report", "What a finished job has to show: quality, bits, blocks, times");
  auto arguments = std::make_shared<ReportArguments>();
  command->add_option("SOURCE", arguments->source, kSourceHelp)->required()->type_name("JOB|DIR");
  command
      ->add_option("--html", arguments->html,
                   "Also write it as one HTML file that needs nothing else; replaces FILE")
      ->type_name("FILE");
  command->footer(
      "\nA name that is a job and a folder with a manifest.json here is the folder; the full name\n"
      "tenants/.../quantizationJobs/my-job is always the job. The losses are the mean over tokens\n"
      "of the summed squared error of a block's output.\n\nExamples:\n  quantry report my-job\n"
      "  quantry report ./model-w4 --html report.html\n"
      "  quantry report my-job --output json | jq .quality.perplexity\n"
      "  quantry report my-job --output json | jq -r .reproduction.command\n");
  Bind(*command, chosen, [arguments](Context& context) { return RunReport(context, *arguments); });
}

void AddCompare(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("compare", "Two finished jobs side by side: quality, bits, bytes, blocks");
  auto arguments = std::make_shared<CompareArguments>();
  command->add_option("A", arguments->a, kSourceHelp)->required()->type_name("JOB|DIR");
  command->add_option("B", arguments->b, "The other one")->required()->type_name("JOB|DIR");
  command->footer(
      "\nThe last column is B / A: below 1 is less loss, fewer bytes, less time. Jobs on other\n"
      "models or texts can be compared too; what they differ in is said below the table.\n\n"
      "Examples:\n  quantry compare rtn-w4 awq-w4\n  quantry compare ./model-w3 ./model-w4\n"
      "  quantry compare rtn-w4 awq-w4 --output json | jq .ratios.perplexity_quantized\n");
  Bind(*command, chosen, [arguments](Context& context) { return RunCompare(context, *arguments); });
}

}  // namespace quantry::cli
