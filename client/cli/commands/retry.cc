#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/commands/commands.h"
#include "client/cli/connection.h"
#include "client/cli/errors.h"
#include "client/cli/job_text.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/wait.h"
#include "common/ids.h"

namespace quantry::cli {
namespace {

struct RetryOptions {
  std::string job;
  std::string request_id;
  bool from_start = false;
  bool wait = false;
  WaitOptions waiting;
};

absl::StatusOr<ExitCode> RunRetry(Context& context, const RetryOptions& options) {
  const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, options.job);
  if (!name.ok()) return name.status();
  Connection connection(context.env, context.global);
  v1::RetryQuantizationJobRequest request;
  request.set_name(*name);
  request.set_request_id(options.request_id.empty() ? NewUuid4() : options.request_id);
  request.set_from_start(options.from_start);
  v1::QuantizationJob job;
  absl::Status status =
      connection.Call(connection.jobs(), &Connection::Jobs::RetryQuantizationJob, request, &job);
  if (!status.ok()) return NamingRequest(std::move(status), request.request_id());
  if (options.wait || options.waiting.timeout_s > 0) {
    StatusLine line(context.env, context.global.quiet);
    return WaitForJob(context, connection, line, *name, options.waiting);
  }
  context.env.out << (context.global.json() ? Dump(JobJson(job), context.env.out_is_terminal)
                                            : JobText(job, context.env.now()));
  return ExitCode::kOk;
}

}  // namespace

void AddRetry(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("retry", "Queue a failed or cancelled job again, from its checkpoint");
  auto options = std::make_shared<RetryOptions>();
  AddJobArgument(*command, options->job);
  command->add_flag("--from-start", options->from_start, "Forget the checkpoint");
  command
      ->add_option("--request-id", options->request_id,
                   "UUID: the same one again retries once. Default: a new one")
      ->type_name("UUID");
  command->add_flag("--wait", options->wait, "Follow the job to its end, like watch");
  command
      ->add_option("--wait-timeout", options->waiting.timeout_s,
                   "Wait, but leave after this many seconds with exit code 8")
      ->check(PositiveSeconds())
      ->type_name("SECONDS");
  command->footer(
      "\nExamples:\n  quantry retry my-job --wait\n  quantry retry my-job --from-start\n");
  Bind(*command, chosen, [options](Context& context) { return RunRetry(context, *options); });
}

}  // namespace quantry::cli
