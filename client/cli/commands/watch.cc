#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/commands/commands.h"
#include "client/cli/connection.h"
#include "client/cli/job_text.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/progress.h"
#include "client/cli/wait.h"

namespace quantry::cli {
namespace {

struct WatchOptions {
  std::string job;
  WaitOptions wait;
};

absl::StatusOr<ExitCode> RunWatch(Context& context, const WatchOptions& options) {
  const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, options.job);
  if (!name.ok()) return name.status();
  Connection connection(context.env, context.global);
  // A server that is not there at all is told at once, not after minutes.
  const absl::StatusOr<v1::QuantizationJob> job = connection.GetJob(*name);
  if (!job.ok()) return job.status();
  if (!options.wait.download.empty() && !IsEnded(job->state())) {
    absl::Status status =
        CheckDownload(options.wait.download, ShortId(*name), /*may_be_there=*/false);
    if (!status.ok()) return status;
  }
  StatusLine line(context.env, context.global.quiet);
  return WaitForJob(context, connection, line, *name, options.wait);
}

struct EventsOptions {
  std::string job;
  int64_t after = 0;
};

constexpr int kEventsPage = 1000;

absl::StatusOr<ExitCode> RunEvents(Context& context, const EventsOptions& options) {
  const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, options.job);
  if (!name.ok()) return name.status();
  Connection connection(context.env, context.global);
  v1::ListJobEventsRequest request;
  request.set_parent(*name);
  request.set_page_size(kEventsPage);
  request.set_after_sequence(options.after);
  while (true) {
    v1::ListJobEventsResponse page;
    absl::Status status =
        connection.Call(connection.jobs(), &Connection::Jobs::ListJobEvents, request, &page);
    if (!status.ok()) return status;
    for (const v1::JobEvent& event : page.events()) {
      context.env.out << (context.global.json() ? Dump(EventJson(event), /*pretty=*/false)
                                                : EventText(event) + "\n");
    }
    if (page.next_page_token().empty()) return ExitCode::kOk;
    request.set_page_token(page.next_page_token());
    request.clear_after_sequence();
  }
}

}  // namespace

void AddWatch(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("watch", "Follow a job to its end; Ctrl-C leaves it running");
  auto options = std::make_shared<WatchOptions>();
  AddJobArgument(*command, options->job);
  command
      ->add_option("--wait-timeout", options->wait.timeout_s,
                   "Leave after this many seconds with exit code 8")
      ->check(PositiveSeconds())
      ->type_name("SECONDS");
  command->add_option("--download", options->wait.download, "Pull the artifact into this folder")
      ->type_name("DIR");
  command->footer(
      "\nShows progress on stderr and ends like submit --wait: the job on stdout, its outcome as\n"
      "exit code. Survives a restart of the server.\n\nExamples:\n  quantry watch my-job\n"
      "  quantry watch my-job --wait-timeout 3600 --output json\n");
  Bind(*command, chosen, [options](Context& context) { return RunWatch(context, *options); });
}

void AddEvents(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("events", "The history of a job, oldest first");
  auto options = std::make_shared<EventsOptions>();
  AddJobArgument(*command, options->job);
  command->add_option("--after", options->after, "Only events after this sequence number")
      ->check(NotNegative())
      ->type_name("N");
  command->footer(
      "\nWith --output json: one JSON object a line.\n\nExample:\n  quantry events my-job\n");
  Bind(*command, chosen, [options](Context& context) { return RunEvents(context, *options); });
}

}  // namespace quantry::cli
