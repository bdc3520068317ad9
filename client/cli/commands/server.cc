#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/commands/commands.h"
#include "client/cli/completion.h"
#include "client/cli/connection.h"
#include "client/cli/format.h"
#include "client/cli/job_text.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

absl::StatusOr<ExitCode> RunMethods(Context& context) {
  Connection connection(context.env, context.global);
  v1::ListMethodsResponse methods;
  absl::Status status =
      connection.Call(connection.jobs(), &Connection::Jobs::ListMethods, v1::ListMethodsRequest(),
                      &methods, Connection::kEngineTime);
  if (!status.ok()) return status;
  PrintResult(context, MessageJson(methods)["methods"], MethodsText(methods));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunServerInfo(Context& context) {
  Connection connection(context.env, context.global);
  v1::ServerInfo info;
  absl::Status status = connection.Call(connection.jobs(), &Connection::Jobs::GetServerInfo,
                                        v1::GetServerInfoRequest(), &info);
  if (!status.ok()) return status;
  const ServerAddress& address = connection.address();
  Json json = MessageJson(info);
  json["address"] = address.target;
  PrintResult(context, json,
              ServerInfoText(info, address.target + "  (from " + address.source + ")"));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunWorkers(Context& context) {
  Connection connection(context.env, context.global);
  v1::ListWorkersRequest request;
  v1::ListWorkersResponse workers;  // of all pages
  do {
    v1::ListWorkersResponse page;
    absl::Status status =
        connection.Call(connection.admin(), &Connection::Admin::ListWorkers, request, &page);
    if (!status.ok()) return status;
    workers.mutable_workers()->MergeFrom(page.workers());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  PrintResult(context, MessageJson(workers)["workers"], WorkerTable(workers, context.env.now()));
  return ExitCode::kOk;
}

struct DrainOptions {
  std::string worker;
  bool terminate = false;
};

absl::StatusOr<ExitCode> RunDrain(Context& context, const DrainOptions& options) {
  Connection connection(context.env, context.global);
  v1::DrainWorkerRequest request;
  request.set_worker_id(options.worker);
  request.set_terminate(options.terminate);
  v1::WorkerStatus worker;
  absl::Status status =
      connection.Call(connection.admin(), &Connection::Admin::DrainWorker, request, &worker);
  if (!status.ok()) return status;
  v1::ListWorkersResponse one;
  *one.add_workers() = worker;
  PrintResult(context, MessageJson(worker), WorkerTable(one, context.env.now()));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunQueue(Context& context) {
  Connection connection(context.env, context.global);
  v1::QueueStats stats;
  absl::Status status = connection.Call(connection.admin(), &Connection::Admin::GetQueueStats,
                                        v1::GetQueueStatsRequest(), &stats);
  if (!status.ok()) return status;
  PrintResult(context, MessageJson(stats), QueueText(stats, context.env.now()));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunPause(Context& context, const std::string& reason) {
  Connection connection(context.env, context.global);
  v1::PauseQueueRequest request;
  request.set_reason(reason);
  v1::PauseQueueResponse response;
  absl::Status status =
      connection.Call(connection.admin(), &Connection::Admin::PauseQueue, request, &response);
  if (!status.ok()) return status;
  return RunQueue(context);
}

absl::StatusOr<ExitCode> RunResume(Context& context) {
  Connection connection(context.env, context.global);
  v1::ResumeQueueResponse response;
  absl::Status status = connection.Call(connection.admin(), &Connection::Admin::ResumeQueue,
                                        v1::ResumeQueueRequest(), &response);
  if (!status.ok()) return status;
  return RunQueue(context);
}

struct QuotaOptions {
  std::string tenant;
  v1::SetQuotaRequest limits;
  bool named = false;  // any of them; else they are only shown
};

// One limit: its flag, what the answer says of it, and its field.
struct Limit {
  const char* flag;
  const char* help;
  void (v1::SetQuotaRequest::*set)(int64_t);
};

constexpr Limit kLimits[] = {
    {"--max-queued", "Jobs that wait. Default: 0, no limit", &v1::SetQuotaRequest::set_max_queued},
    {"--max-running", "Jobs that run; the others wait. Default: 0, no limit",
     &v1::SetQuotaRequest::set_max_running},
    {"--max-stored-bytes", "Bytes of artifacts and uploads. Default: 0, no limit",
     &v1::SetQuotaRequest::set_max_stored_bytes},
    {"--max-submits-per-minute", "Submits and retries. Default: 0, no limit",
     &v1::SetQuotaRequest::set_max_submits_per_minute},
    {"--max-watches", "Watches open at one server. Default: 0, no limit",
     &v1::SetQuotaRequest::set_max_watches},
};

void PrintQuota(Context& context, const std::string& parent, const v1::GetQuotaResponse& quota) {
  const auto limit = [](int64_t n, std::string_view unit = "") {
    return n == 0 ? std::string("no limit") : Cat("at most ", n, unit);
  };
  PrintResult(context, MessageJson(quota),
              Cat(parent, "\n",
                  Fields({{"queued", Cat(quota.queued(), " now, ", limit(quota.max_queued()))},
                          {"running", Cat(quota.running(), " now, ", limit(quota.max_running()))},
                          {"stored", Cat(Bytes(quota.stored_bytes()), " now, ",
                                         limit(quota.max_stored_bytes(), " bytes"))},
                          {"submits a minute", limit(quota.max_submits_per_minute())},
                          {"watches", limit(quota.max_watches())}})));
}

absl::StatusOr<ExitCode> RunQuota(Context& context, const QuotaOptions& options) {
  absl::StatusOr<std::string> parent = ResolveTenant(options.tenant);
  if (!parent.ok()) return parent.status();
  Connection connection(context.env, context.global);
  if (options.named) {
    v1::SetQuotaRequest limits = options.limits;
    limits.set_parent(*parent);
    v1::SetQuotaResponse usage;
    absl::Status set =
        connection.Call(connection.admin(), &Connection::Admin::SetQuota, limits, &usage);
    if (!set.ok()) return set;
  }
  v1::GetQuotaRequest request;
  request.set_parent(*parent);
  v1::GetQuotaResponse quota;
  absl::Status status =
      connection.Call(connection.admin(), &Connection::Admin::GetQuota, request, &quota);
  if (!status.ok()) return status;
  PrintQuota(context, *parent, quota);
  return ExitCode::kOk;
}

struct GcOptions {
  bool dry_run = false;
  double older_than_h = 24;
};

// Listing a large store takes longer than one call may.
constexpr auto kGcTime = std::chrono::minutes(30);

absl::StatusOr<ExitCode> RunGc(Context& context, const GcOptions& options) {
  GlobalOptions patient = context.global;
  patient.timeout_s = std::max(patient.timeout_s, std::chrono::duration<double>(kGcTime).count());
  Connection connection(context.env, patient);
  v1::CollectGarbageRequest request;
  request.set_dry_run(options.dry_run);
  request.mutable_grace()->set_seconds(static_cast<int64_t>(options.older_than_h * 3600));
  v1::CollectGarbageResponse response;
  absl::Status status =
      connection.Call(connection.admin(), &Connection::Admin::CollectGarbage, request, &response);
  if (!status.ok()) return status;
  PrintResult(context, MessageJson(response),
              Cat(options.dry_run ? "would remove " : "removed ", response.objects(), " files, ",
                  Bytes(response.bytes()), ": ", response.attempts(), " dead attempts, ",
                  response.blobs(), " uploads\n"));
  return ExitCode::kOk;
}

// A family that does its first thing when named alone: `quantry workers`.
void BindDefault(CLI::App& family, Action& chosen, Action action) {
  family.fallthrough();
  family.require_subcommand(0, 1);
  family.callback([&family, &chosen, action = std::move(action)] {
    if (family.get_subcommands().empty()) chosen = action;
  });
}

}  // namespace

void AddMethods(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("methods", "The server's quantization methods, parameters and defaults");
  command->footer("\nExample:\n  quantry methods --output json | jq '.[].name'\n");
  Bind(*command, chosen, RunMethods);
}

void AddServerInfo(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("server-info", "Address, version, model types, formats and limits");
  command->footer("\nExample:\n  quantry server-info --server gpu-box:7070\n");
  Bind(*command, chosen, RunServerInfo);
}

void AddWorkers(CLI::App& app, Action& chosen) {
  CLI::App* family = app.add_subcommand("workers", "Workers: list them, drain one");
  family->footer("\nExamples:\n  quantry workers\n  quantry workers drain gpu-7\n");
  BindDefault(*family, chosen, RunWorkers);
  Bind(*family->add_subcommand("list", "Workers seen lately"), chosen, RunWorkers);
  CLI::App* drain =
      family->add_subcommand("drain", "Let a worker finish or give back its jobs, then rest");
  auto options = std::make_shared<DrainOptions>();
  drain->add_option("WORKER", options->worker, "Worker id, as `quantry workers list` shows it")
      ->required()
      ->type_name("WORKER");
  drain->add_flag("--terminate", options->terminate, "It also exits afterwards");
  drain->footer("\nExample:\n  quantry workers drain gpu-7 --terminate\n");
  Bind(*drain, chosen, [options](Context& context) { return RunDrain(context, *options); });
}

void AddQueue(CLI::App& app, Action& chosen) {
  CLI::App* family = app.add_subcommand("queue", "The queue: depth, ages, slots; pause it");
  family->footer(
      "\nExamples:\n  quantry queue\n  quantry queue pause --reason \"new engine tonight\"\n"
      "  quantry queue resume\n");
  BindDefault(*family, chosen, RunQueue);
  Bind(*family->add_subcommand("stats", "Depth, ages and states now"), chosen, RunQueue);
  CLI::App* pause = family->add_subcommand(
      "pause", "Give workers no new jobs; running ones go on, new ones are taken in");
  auto reason = std::make_shared<std::string>();
  pause->add_option("--reason", *reason, "Why; waiting jobs show it")->type_name("TEXT");
  pause->footer("\nExample:\n  quantry queue pause --reason \"new engine tonight\"\n");
  Bind(*pause, chosen, [reason](Context& context) { return RunPause(context, *reason); });
  CLI::App* resume = family->add_subcommand("resume", "Give workers jobs again");
  resume->footer("\nExample:\n  quantry queue resume\n");
  Bind(*resume, chosen, RunResume);
}

void AddQuota(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("quota", "Show or set what a tenant may queue, run, keep and ask for");
  auto options = std::make_shared<QuotaOptions>();
  command->add_option("TENANT", options->tenant, "Tenant")->required()->type_name("TENANT");
  for (const Limit& limit : kLimits) {
    command
        ->add_option_function<int64_t>(
            limit.flag,
            [options, set = limit.set](const int64_t& n) {
              (options->limits.*set)(n);
              options->named = true;
            },
            limit.help)
        ->check(NotNegative())
        ->type_name("N");
  }
  command->footer(
      "\nWithout a limit it shows what is set and used. A call that names one sets all of them:\n"
      "what it does not name has none afterwards. Servers of one store share the first four;\n"
      "each counts watches by itself, so N servers allow N times as many.\n"
      "\nExamples:\n  quantry quota research\n"
      "  quantry quota research --max-queued 100 --max-running 4 --max-stored-bytes 1000000000000\n"
      "  quantry quota research --max-queued 0\n");
  Bind(*command, chosen, [options](Context& context) { return RunQuota(context, *options); });
}

void AddGc(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("gc", "Remove uploads no job names and leftovers of dead attempts");
  auto options = std::make_shared<GcOptions>();
  command->add_flag("--dry-run", options->dry_run, "Say how much, remove nothing");
  command
      ->add_option("--older-than", options->older_than_h,
                   "Only what did not change for this many hours. Default: 24")
      ->check(Hours())
      ->type_name("HOURS");
  command->footer("\nExamples:\n  quantry gc --dry-run\n  quantry gc --older-than 168\n");
  Bind(*command, chosen, [options](Context& context) { return RunGc(context, *options); });
}

void AddCompletion(CLI::App& app, Action& chosen) {
  CLI::App* family = app.add_subcommand("completion", "Completion script for a shell");
  family->require_subcommand(1);
  family->fallthrough();
  family->footer("\nExample:\n  source <(quantry completion bash)\n");
  CLI::App* bash = family->add_subcommand("bash", "For bash");
  bash->footer(
      "\nExamples:\n  source <(quantry completion bash)\n"
      "  quantry completion bash > /etc/bash_completion.d/quantry\n");
  Bind(*bash, chosen, [&app](Context& context) {
    const std::string script = BashCompletion(app);
    PrintResult(context, {{"script", script}}, script);
    return ExitCode::kOk;
  });
}

void AddVersion(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("version", "Version of this program");
  command->footer("\nExample:\n  quantry version\n");
  Bind(*command, chosen, [](Context& context) {
    PrintResult(context, {{"version", QUANTRY_VERSION}}, "quantry " QUANTRY_VERSION "\n");
    return ExitCode::kOk;
  });
}

}  // namespace quantry::cli
