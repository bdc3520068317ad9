#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/commands/commands.h"
#include "client/cli/connection.h"
#include "client/cli/errors.h"
#include "client/cli/job_filter.h"
#include "client/cli/job_text.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/spec.h"
#include "client/cli/text.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

void PrintJob(Context& context, const v1::QuantizationJob& job) {
  if (context.global.json()) {
    context.env.out << Dump(JobJson(job), context.env.out_is_terminal);
  } else {
    context.env.out << JobText(job, context.env.now());
  }
}

absl::StatusOr<ExitCode> RunGet(Context& context, const std::string& id) {
  const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, id);
  if (!name.ok()) return name.status();
  Connection connection(context.env, context.global);
  const absl::StatusOr<v1::QuantizationJob> job = connection.GetJob(*name);
  if (!job.ok()) return job.status();
  PrintJob(context, *job);
  return ExitCode::kOk;
}

struct ListOptions {
  JobFilter filter;
  std::vector<std::string> labels;
  int limit = 50;
};

constexpr int kPage = 1000;

// Page by page up to the limit (0 = all). `more` tells that there are others.
absl::StatusOr<std::vector<v1::QuantizationJob>> Fetch(Connection& connection,
                                                       v1::ListQuantizationJobsRequest request,
                                                       int limit, bool* more) {
  std::vector<v1::QuantizationJob> jobs;
  while (true) {
    const int left = limit == 0 ? kPage : limit - static_cast<int>(jobs.size());
    request.set_page_size(std::min(left, kPage));
    v1::ListQuantizationJobsResponse page;
    absl::Status status =
        connection.Call(connection.jobs(), &Connection::Jobs::ListQuantizationJobs, request, &page);
    if (!status.ok()) return status;
    jobs.insert(jobs.end(), page.quantization_jobs().begin(), page.quantization_jobs().end());
    *more = !page.next_page_token().empty();
    if (!*more || (limit != 0 && static_cast<int>(jobs.size()) >= limit)) return jobs;
    request.set_page_token(page.next_page_token());
  }
}

void PrintList(Context& context, const std::vector<v1::QuantizationJob>& jobs, bool more) {
  Environment& env = context.env;
  if (context.global.json()) {
    Json list = Json::array();
    for (const v1::QuantizationJob& job : jobs) list.push_back(JobJson(job));
    env.out << Dump(list, env.out_is_terminal);
  } else if (context.global.quiet) {
    for (const v1::QuantizationJob& job : jobs) env.out << ShortId(job.name()) << '\n';
  } else if (jobs.empty()) {
    env.out << "no jobs\n";
  } else {
    env.out << JobTable(jobs, env.now());
  }
  if (more && !context.global.quiet) {
    env.err << "quantry: there are more; --limit 0 lists all\n";
  }
}

absl::StatusOr<ExitCode> RunList(Context& context, const ListOptions& options) {
  const auto labels = ParseLabels(options.labels);
  if (!labels.ok()) return labels.status();
  absl::StatusOr<std::string> parent = ResolveTenant(context.global.tenant);
  if (!parent.ok()) return parent.status();
  JobFilter filter = options.filter;
  filter.labels = *labels;
  v1::ListQuantizationJobsRequest request;
  request.set_parent(*std::move(parent));
  request.set_filter(FilterText(filter));
  Connection connection(context.env, context.global);
  bool more = false;
  const auto jobs = Fetch(connection, std::move(request), options.limit, &more);
  if (!jobs.ok()) return jobs.status();
  PrintList(context, *jobs, more);
  return ExitCode::kOk;
}

struct CancelOptions {
  std::string job;
  std::string reason;
};

absl::StatusOr<ExitCode> RunCancel(Context& context, const CancelOptions& options) {
  const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, options.job);
  if (!name.ok()) return name.status();
  Connection connection(context.env, context.global);
  v1::CancelQuantizationJobRequest request;
  request.set_name(*name);
  request.set_reason(options.reason);
  v1::QuantizationJob job;
  absl::Status status =
      connection.Call(connection.jobs(), &Connection::Jobs::CancelQuantizationJob, request, &job);
  if (!status.ok()) return status;
  PrintJob(context, job);
  return ExitCode::kOk;
}

struct DeleteOptions {
  std::vector<std::string> jobs;
  bool allow_missing = false;
};

// Whether the job was there. The first call tells; the second, where none need be there, whether it
// is the job that is missing or the right to see it.
absl::StatusOr<bool> DeleteOne(Connection& connection, const std::string& name,
                               bool allow_missing) {
  v1::DeleteQuantizationJobRequest request;
  request.set_name(name);
  google::protobuf::Empty nothing;
  absl::Status status = connection.CallOnlyOnce(
      connection.jobs(), &Connection::Jobs::DeleteQuantizationJob, request, &nothing);
  if (status.ok()) return true;
  if (!allow_missing || !HasReason(status, Reason::kJobNotFound)) return status;
  request.set_allow_missing(true);
  status = connection.CallOnlyOnce(connection.jobs(), &Connection::Jobs::DeleteQuantizationJob,
                                   request, &nothing);
  if (!status.ok()) return status;
  return false;
}

absl::StatusOr<ExitCode> RunDelete(Context& context, const DeleteOptions& options) {
  Connection connection(context.env, context.global);
  std::vector<std::string> deleted;
  for (const std::string& id : options.jobs) {
    const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, id);
    if (!name.ok()) return name.status();
    const absl::StatusOr<bool> was_there = DeleteOne(connection, *name, options.allow_missing);
    if (!was_there.ok()) {
      return deleted.empty() ? was_there.status()
                             : WithMetadata(was_there.status(), "deleted", CommaSeparated(deleted));
    }
    if (*was_there) deleted.push_back(*name);
    if (context.global.json()) continue;
    context.env.out << (*was_there ? "deleted " : "nothing named ") << *name << "\n";
  }
  if (context.global.json()) {
    context.env.out << Dump({{"deleted", deleted}}, context.env.out_is_terminal);
  }
  return ExitCode::kOk;
}

struct UpdateOptions {
  std::string job;
  std::vector<std::string> labels;
  std::vector<std::string> remove_labels;
  std::optional<int> priority;
};

// The labels afterwards: the job's, less the removed, with the given over them.
absl::Status EditLabels(const UpdateOptions& options, v1::QuantizationJob& job) {
  const auto labels = ParseLabels(options.labels);
  if (!labels.ok()) return labels.status();
  for (const std::string& key : options.remove_labels) job.mutable_labels()->erase(key);
  for (const auto& [key, value] : *labels) (*job.mutable_labels())[key] = value;
  return absl::OkStatus();
}

absl::StatusOr<ExitCode> RunUpdate(Context& context, const UpdateOptions& options) {
  const absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, options.job);
  if (!name.ok()) return name.status();
  const bool relabel = !options.labels.empty() || !options.remove_labels.empty();
  if (!relabel && !options.priority) {
    return absl::InvalidArgumentError(
        "wanted something to change: --label, --remove-label or --priority, got none");
  }
  Connection connection(context.env, context.global);
  absl::StatusOr<v1::QuantizationJob> got = connection.GetJob(*name);
  if (!got.ok()) return got.status();
  v1::QuantizationJob job = *std::move(got);
  absl::Status status;
  v1::UpdateQuantizationJobRequest request;
  if (relabel) {
    if (status = EditLabels(options, job); !status.ok()) return status;
    request.mutable_update_mask()->add_paths("labels");
  }
  if (options.priority) {
    job.set_priority(*options.priority);
    request.mutable_update_mask()->add_paths("priority");
  }
  // The etag travels along: somebody else's change in between is not undone.
  *request.mutable_quantization_job() = job;
  status = connection.CallOnlyOnce(connection.jobs(), &Connection::Jobs::UpdateQuantizationJob,
                                   request, &job);
  if (!status.ok()) return status;
  PrintJob(context, job);
  return ExitCode::kOk;
}

}  // namespace

void AddGet(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("get", "Show one job");
  auto job = std::make_shared<std::string>();
  AddJobArgument(*command, *job);
  command->footer(
      "\nExamples:\n  quantry get my-job\n  quantry get my-job --output json | jq .state\n");
  Bind(*command, chosen, [job](Context& context) { return RunGet(context, *job); });
}

void AddList(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("list", "List jobs, newest first");
  auto options = std::make_shared<ListOptions>();
  Choices(command->add_option("--state", options->filter.state, "Only jobs in this state"),
          StateWords());
  command->add_option("--label", options->labels, "Only jobs with this label; repeat for several")
      ->take_all()
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  Choices(command->add_option("--method", options->filter.method, "Only jobs of this method"),
          MethodNames());
  command->add_option("--limit", options->limit, "At most this many; 0 = all. Default: 50")
      ->check(NotNegative())
      ->type_name("N");
  command->footer(
      "\nExamples:\n  quantry list --state running\n  quantry list --label team=search --limit 0\n"
      "  quantry list --state failed --quiet | xargs -r quantry delete\n");
  Bind(*command, chosen, [options](Context& context) { return RunList(context, *options); });
}

void AddCancel(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("cancel", "Cancel a job; a running one stops in seconds");
  auto options = std::make_shared<CancelOptions>();
  AddJobArgument(*command, options->job);
  command->add_option("--reason", options->reason, "Why; kept with the job")->type_name("TEXT");
  command->footer("\nExample:\n  quantry cancel my-job --reason \"wrong calibration text\"\n");
  Bind(*command, chosen, [options](Context& context) { return RunCancel(context, *options); });
}

void AddDelete(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("delete", "Delete ended jobs with their events and artifacts");
  auto options = std::make_shared<DeleteOptions>();
  command->add_option("JOB", options->jobs, "Jobs: ids or full names")
      ->required()
      ->type_name("JOB");
  command->add_flag("--allow-missing", options->allow_missing, "A job that is not there is fine");
  command->footer("\nExample:\n  quantry delete my-job old-job\n");
  Bind(*command, chosen, [options](Context& context) { return RunDelete(context, *options); });
}

void AddUpdate(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("update", "Change a job's labels or priority");
  auto options = std::make_shared<UpdateOptions>();
  AddJobArgument(*command, options->job);
  command->add_option("--label", options->labels, "Set a label; repeat for several")
      ->take_all()
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->add_option("--remove-label", options->remove_labels, "Remove a label")
      ->take_all()
      ->allow_extra_args(false)
      ->type_name("KEY");
  command->add_option("--priority", options->priority, "-100..100, higher first")
      ->check(CLI::Range(-100, 100))
      ->type_name("N");
  command->footer(
      "\nExamples:\n  quantry update my-job --priority 50\n"
      "  quantry update my-job --label stage=release --remove-label draft\n");
  Bind(*command, chosen, [options](Context& context) { return RunUpdate(context, *options); });
}

}  // namespace quantry::cli
