#include "client/cli/pull.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <vector>

#include "client/cli/artifact_file.h"
#include "client/cli/commands/commands.h"
#include "client/cli/json.h"
#include "client/cli/spec.h"
#include "client/cli/text.h"
#include "client/cli/wait.h"

namespace quantry::cli {
namespace {

struct PullArguments {
  std::string source;
  PullOptions options;
};

std::string OutputFolder(const std::string& folder, const v1::OutputSummary& output) {
  return output.path().empty() ? folder : Cat(folder, "/", output.path());
}

void PrintSummary(Context& context, const PullSummary& summary, const std::string& artifact,
                  const PullOptions& options) {
  const std::vector<v1::OutputSummary> outputs = ChooseOutputs(summary.manifest, options);
  if (context.global.json()) {
    Json json = {{"artifact", artifact},
                 {"folder", options.folder},
                 {"files", summary.files},
                 {"bytes", summary.bytes},
                 {"downloaded_files", summary.downloaded},
                 {"downloaded_bytes", summary.downloaded_bytes},
                 {"verified", true}};
    if (!options.path.empty()) json["path"] = options.path;
    json["outputs"] = Json::array();
    for (const v1::OutputSummary& output : outputs) json["outputs"].push_back(MessageJson(output));
    context.env.out << Dump(json, context.env.out_is_terminal);
    return;
  }
  if (!options.path.empty()) {
    context.env.out << options.folder << "/" << options.path << "\n";
    return;
  }
  for (const v1::OutputSummary& output : outputs) {
    context.env.out << output.format() << "  " << OutputFolder(options.folder, output) << "\n";
  }
}

absl::StatusOr<ExitCode> RunPull(Context& context, const PullArguments& arguments) {
  Connection connection(context.env, context.global);
  StatusLine line(context.env, context.global.quiet);
  const absl::StatusOr<std::string> name = FindArtifact(context, connection, arguments.source);
  if (!name.ok()) return name.status();
  const auto summary = PullArtifact(connection, line, *name, arguments.options);
  if (!summary.ok()) return summary.status();
  PrintSummary(context, *summary, *name, arguments.options);
  return ExitCode::kOk;
}

}  // namespace

void AddPull(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("pull", "Download an artifact and verify every byte");
  auto arguments = std::make_shared<PullArguments>();
  PullOptions& options = arguments->options;
  command
      ->add_option("JOB", arguments->source, "A job that has ended, or an artifact's uid or name")
      ->required()
      ->type_name("JOB");
  command->add_option("DIR", options.folder, "Where to put it; made when missing")
      ->required()
      ->type_name("DIR");
  Choices(command->add_option("--format", options.format, "Only this output's files"),
          FormatNames());
  command->add_option("--path", options.path, "Only this file or folder of the artifact")
      ->type_name("PATH");
  command->add_flag("--force", options.force, "Replace files in DIR that are not the artifact's");
  command->footer(
      "\nEvery file is checked against the sha256 in manifest.json, and the manifest against the\n"
      "server's record. Interrupted? Run it again: it goes on where it stopped. Complete? Run it\n"
      "again to verify the folder. One pull at a time fills a folder. With --force the files "
      "there\n"
      "change only when all of the artifact has arrived: it needs room for both.\n\nExamples:\n  "
      "quantry pull my-job ./model-w4\n"
      "  quantry pull my-job ./model-w4 --format compressed-tensors\n"
      "  quantry pull my-job ./out --path report/report.html\n");
  Bind(*command, chosen, [arguments](Context& context) { return RunPull(context, *arguments); });
}

}  // namespace quantry::cli
