#include "server/metrics/server_metrics.h"

#include <algorithm>
#include <csignal>
#include <iterator>
#include <utility>

#include "common/signal_name.h"
#include "prometheus/text_serializer.h"
#include "server/jobs/job_store.h"

namespace quantry::server {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

// Seconds. spec/service.md §4.1.
const Buckets& RpcBuckets() {
  static const Buckets buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                  0.25,  0.5,    1,     2.5,  5,     10};
  return buckets;
}
const Buckets& QueueBuckets() {
  static const Buckets buckets = {1, 5, 15, 60, 300, 900, 3600, 14400, 43200, 86400, 259200};
  return buckets;
}
const Buckets& RunBuckets() {
  static const Buckets buckets = {10,   30,   60,    300,   900,   1800,
                                  3600, 7200, 14400, 43200, 86400, 172800};
  return buckets;
}

std::map<std::string, std::string> Labels(const std::vector<std::string>& names,
                                          const std::vector<std::string>& values) {
  std::map<std::string, std::string> labels;
  for (size_t i = 0; i < names.size() && i < values.size(); ++i) labels[names[i]] = values[i];
  return labels;
}

prometheus::Counter& OneCounter(prometheus::Registry* registry, const std::string& name,
                                const std::string& help) {
  return BuildCounter().Name(name).Help(help).Register(*registry).Add({});
}

prometheus::Gauge& OneGauge(prometheus::Registry* registry, const std::string& name,
                            const std::string& help) {
  return BuildGauge().Name(name).Help(help).Register(*registry).Add({});
}

}  // namespace

CounterVec::CounterVec(prometheus::Registry* registry, const std::string& name,
                       const std::string& help, std::vector<std::string> labels)
    : family_(&BuildCounter().Name(name).Help(help).Register(*registry)),
      labels_(std::move(labels)) {}

prometheus::Counter& CounterVec::With(const std::vector<std::string>& values) {
  return family_->Add(Labels(labels_, values));
}

HistogramVec::HistogramVec(prometheus::Registry* registry, const std::string& name,
                           const std::string& help, std::vector<std::string> labels,
                           Buckets buckets)
    : family_(&BuildHistogram().Name(name).Help(help).Register(*registry)),
      labels_(std::move(labels)),
      buckets_(std::move(buckets)) {}

prometheus::Histogram& HistogramVec::With(const std::vector<std::string>& values) {
  return family_->Add(Labels(labels_, values), buckets_);
}

GaugeVec::GaugeVec(prometheus::Registry* registry, const std::string& name, const std::string& help,
                   std::vector<std::string> labels)
    : family_(&BuildGauge().Name(name).Help(help).Register(*registry)),
      labels_(std::move(labels)) {}

prometheus::Gauge& GaugeVec::With(const std::vector<std::string>& values) {
  return family_->Add(Labels(labels_, values));
}

ServerMetrics::ServerMetrics(const std::vector<std::string>& grpc_methods,
                             const std::vector<std::string>& quantization_methods)
    : registry_(std::make_shared<prometheus::Registry>()),
      queue_registry_(std::make_shared<prometheus::Registry>()),
      call_started(registry_.get(), "grpc_server_call_started_total",
                   "RPCs started, whether they finished or not.", {"grpc_method"}),
      call_duration(registry_.get(), "grpc_server_call_duration_seconds",
                    "Time from the start of an RPC to its end.", {"grpc_method", "grpc_status"},
                    RpcBuckets()),
      jobs(queue_registry_.get(), "quantry_jobs", "Jobs in each state.", {"state"}),
      queue_depth(
          OneGauge(queue_registry_.get(), "quantry_queue_depth", "Jobs a worker could claim now.")),
      queue_held(OneGauge(queue_registry_.get(), "quantry_queue_held",
                          "Queued jobs above the max_running of their tenant.")),
      queue_oldest_timestamp(
          OneGauge(queue_registry_.get(), "quantry_queue_oldest_timestamp_seconds",
                   "When the job that waits longest was queued; 0 without one.")),
      queue_paused(OneGauge(queue_registry_.get(), "quantry_queue_paused",
                            "1 while an operator holds the queue.")),
      workers_live(OneGauge(queue_registry_.get(), "quantry_workers_live",
                            "Workers seen within one lease time.")),
      jobs_submitted(OneCounter(registry_.get(), "quantry_jobs_submitted_total", "Jobs accepted.")),
      jobs_finished(registry_.get(), "quantry_jobs_finished_total", "Jobs that ended.",
                    {"method", "outcome"}),
      result_cache(registry_.get(), "quantry_result_cache_total",
                   "Submits that asked for an earlier job's result.", {"outcome"}),
      job_queue_seconds(BuildHistogram()
                            .Name("quantry_job_queue_seconds")
                            .Help("Time from submit to the first claim.")
                            .Register(*registry_)
                            .Add({}, QueueBuckets())),
      job_run_seconds(registry_.get(), "quantry_job_run_seconds",
                      "Time from the first claim to the end.", {"method"}, RunBuckets()),
      job_attempts(registry_.get(), "quantry_job_attempts_total", "Attempts that ended.",
                   {"outcome"}),
      engine_signals(registry_.get(), "quantry_attempt_engine_signals_total",
                     "Failed attempts whose engine died of a signal.", {"signal"}),
      lease_expired(OneCounter(registry_.get(), "quantry_lease_expired_total",
                               "Leases taken from workers that went silent.")),
      stale_writes_rejected(registry_.get(), "quantry_stale_writes_rejected_total",
                            "Worker writes refused because their lease was lost.", {"op"}),
      sweeper_last_run(OneGauge(registry_.get(), "quantry_sweeper_last_run_timestamp_seconds",
                                "When lost leases were last looked for.")),
      watch_streams(OneGauge(registry_.get(), "quantry_watch_streams", "Open watch streams.")),
      watch_events_sent(registry_.get(), "quantry_watch_events_sent_total",
                        "Messages sent on watch streams.", {"kind"}),
      watch_events_conflated(OneCounter(registry_.get(), "quantry_watch_events_conflated_total",
                                        "Progress updates merged into a later one.")),
      store_op_seconds(registry_.get(), "quantry_store_op_seconds", "Time of a job store call.",
                       {"op"}, RpcBuckets()),
      store_errors(registry_.get(), "quantry_store_errors_total",
                   "Job store calls that failed for a fault of the store.", {"op", "code"}),
      store_dead_rows(OneGauge(queue_registry_.get(), "quantry_store_dead_rows",
                               "Old versions of the queue's rows that vacuum has not removed; 0 "
                               "with SQLite.")),
      store_oldest_snapshot_age(
          OneGauge(queue_registry_.get(), "quantry_store_oldest_snapshot_age_transactions",
                   "Transactions since the oldest snapshot that holds vacuum back; 0 with "
                   "SQLite.")),
      artifact_bytes(registry_.get(), "quantry_artifact_bytes_total",
                     "Bytes of uploads and downloads.", {"direction"}),
      garbage_collections(registry_.get(), "quantry_garbage_collections_total",
                          "Collections of garbage by this server itself; error: not all of it "
                          "could be looked at or removed.",
                          {"outcome"}),
      agent_restarts(OneCounter(registry_.get(), "quantry_agent_restarts_total",
                                "Times the embedded agent was started again.")),
      server_faults(registry_.get(), "quantry_server_faults_total",
                    "Calls that ended with a fault of the server.", {"grpc_method"}),
      calls_denied(registry_.get(), "quantry_calls_denied_total",
                   "Calls of strangers (UNAUTHENTICATED) and of callers without the right "
                   "(PERMISSION_DENIED).",
                   {"code"}),
      audit_lines(registry_.get(), "quantry_audit_lines_total",
                  "Lines of the audit log: changes that were asked for, and expiry.", {"outcome"}),
      credential_reloads(registry_.get(), "quantry_credential_reloads_total",
                         "Changed files of credentials that were read; error: they stay unused.",
                         {"outcome"}),
      credentials_usable(registry_.get(), "quantry_credentials_usable",
                         "1 if the files of a credential can be used; 0: what was read before "
                         "stays in use.",
                         {"credential"}),
      certificate_expiry(registry_.get(), "quantry_tls_certificate_expiry_timestamp_seconds",
                         "End of the certificates this server uses; 0 without one.",
                         {"certificate"}),
      build_info_(registry_.get(), "quantry_build_info", "Versions; always 1.",
                  {"version", "engine"}) {
  for (const std::string& method : grpc_methods) {
    call_started.With({method});
    server_faults.With({method});
  }
  for (const JobState state : kAllJobStates) jobs.With({std::string(JobStateName(state))});
  for (const std::string& method : quantization_methods) {
    for (const char* outcome : {"succeeded", "failed", "cancelled"}) {
      jobs_finished.With({method, outcome});
    }
    job_run_seconds.With({method});
  }
  for (const char* outcome :
       {"succeeded", "failed", "cancelled", "released", "lost", "no_progress", "max_run"}) {
    job_attempts.With({outcome});
  }
  for (const int signal : {0, SIGKILL, SIGTERM, SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGTRAP,
                           SIGSYS, SIGXCPU, SIGXFSZ}) {  // 0 is "other"
    engine_signals.With({SignalName(signal)});
  }
  for (const char* outcome : {"hit", "joined", "miss"}) result_cache.With({outcome});
  for (const char* op : {"heartbeat", "commit_checkpoint", "complete", "fail", "release"}) {
    stale_writes_rejected.With({op});
  }
  for (const char* kind : {"snapshot", "event", "progress", "keepalive", "end"}) {
    watch_events_sent.With({kind});
  }
  for (const std::string& op : StoreOps()) {
    store_op_seconds.With({op});
    for (const char* code : {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"}) {
      store_errors.With({op, code});
    }
  }
  for (const char* code : {"UNAUTHENTICATED", "PERMISSION_DENIED"}) calls_denied.With({code});
  for (const char* outcome : {"ok", "error"}) {
    audit_lines.With({outcome});
    credential_reloads.With({outcome});
    garbage_collections.With({outcome});
  }
  for (const char* credential : {"principals", "server", "client_ca"}) {
    credentials_usable.With({credential}).Set(1);
  }
  for (const char* certificate : {"server", "client_ca"}) certificate_expiry.With({certificate});
  artifact_bytes.With({"upload"});
  artifact_bytes.With({"download"});
}

std::string ServerMetrics::Render() const {
  auto families = registry_->Collect();
  if (queue_known_) std::ranges::move(queue_registry_->Collect(), std::back_inserter(families));
  return prometheus::TextSerializer().Serialize(families);
}

void ServerMetrics::SetQueue(const StoreStats& stats, Time now) {
  for (const auto& [state, count] : stats.jobs) {
    jobs.With({std::string(JobStateName(state))}).Set(static_cast<double>(count));
  }
  queue_depth.Set(static_cast<double>(stats.depth));
  queue_held.Set(static_cast<double>(stats.held));
  queue_oldest_timestamp.Set(
      stats.oldest_queued ? WallSeconds() - ToSeconds(now - *stats.oldest_queued) : 0);
  queue_paused.Set(stats.pause ? 1 : 0);
  workers_live.Set(stats.live_workers);
  store_dead_rows.Set(static_cast<double>(stats.dead_rows));
  store_oldest_snapshot_age.Set(static_cast<double>(stats.oldest_snapshot_age));
  queue_known_ = true;
}

void ServerMetrics::ForgetQueue() { queue_known_ = false; }

void ServerMetrics::SetEngineVersion(const std::string& engine_version) {
  build_info_.With({QUANTRY_VERSION, engine_version}).Set(1);
}

double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string StatusName(absl::StatusCode code) {
  return code == absl::StatusCode::kOk ? "OK" : absl::StatusCodeToString(code);
}

const std::vector<absl::StatusCode>& AllStatusCodes() {
  static const std::vector<absl::StatusCode> codes = [] {
    std::vector<absl::StatusCode> all;
    for (int code = 0; code <= 16; ++code) all.push_back(static_cast<absl::StatusCode>(code));
    return all;
  }();
  return codes;
}

const std::vector<std::string>& StoreOps() {
  static const std::vector<std::string> ops = {"submit",
                                               "get",
                                               "list",
                                               "update",
                                               "cancel",
                                               "retry",
                                               "delete",
                                               "quota",
                                               "artifact_bytes",
                                               "events",
                                               "get_artifact",
                                               "list_artifacts",
                                               "register_worker",
                                               "acquire",
                                               "heartbeat",
                                               "commit_checkpoint",
                                               "complete",
                                               "fail",
                                               "release",
                                               "list_workers",
                                               "drain_worker",
                                               "pause_queue",
                                               "resume_queue",
                                               "set_quota",
                                               "usage",
                                               "sweep",
                                               "stats",
                                               "list_garbage",
                                               "forget_garbage",
                                               "list_references",
                                               "ping"};
  return ops;
}

double ToSeconds(Duration duration) { return static_cast<double>(duration.count()) / 1e6; }

}  // namespace quantry::server
