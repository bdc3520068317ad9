#include "server/server_app.h"

#include <malloc.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checked_certificates.h"
#include "common/clock.h"
#include "common/errors.h"
#include "common/http_admin.h"
#include "common/ids.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "google/protobuf/descriptor.h"
#include "quantry/v1/method.pb.h"
#include "server/artifacts/artifact_store.h"
#include "server/artifacts/deleted_jobs.h"
#include "server/artifacts/file_ops.h"
#include "server/artifacts/garbage_collector.h"
#include "server/auth/authenticator.h"
#include "server/auth/credential_watcher.h"
#include "server/auth/tenant_sources.h"
#include "server/embedded_agent.h"
#include "server/embedded_worker.h"
#include "server/job_store_setup.h"
#include "server/metrics/metered_job_store.h"
#include "server/scheduling/notifying_job_store.h"
#include "server/scheduling/store_probe.h"
#include "server/scheduling/sweeper.h"
#include "server/server_config.h"
#include "server/status/status_pages.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

// What Method's oneof offers, so that every method's counters begin at 0.
std::vector<std::string> QuantizationMethods() {
  std::vector<std::string> names;
  const google::protobuf::OneofDescriptor& kinds = *v1::Method::descriptor()->oneof_decl(0);
  for (int i = 0; i < kinds.field_count(); ++i) names.push_back(kinds.field(i)->name());
  return names;
}

// Store calls wait for fsync; group commit turns many waiting threads into few
// commits, so there are more threads than cores.
constexpr int kWorkerThreads = 8;
constexpr int kStreamThreads = 8;
constexpr int kArtifactThreads = 16;
constexpr int kUploadThreads = 16;
constexpr int kCommitThreads = 8;
constexpr int kSlowThreads = 2;
constexpr size_t kTenantQueue = 4096;
constexpr size_t kWorkerQueue = 4096;
constexpr size_t kArtifactQueue = 1024;
constexpr size_t kCommitQueue = 1024;
constexpr size_t kSlowQueue = 16;
// Wake-ups from other servers may be lost.
constexpr Duration kSharedWatchPoll = std::chrono::seconds(1);
// A queue that could not be counted for this long is not exported.
constexpr std::chrono::minutes kQueueNews{1};

class App : public ServerApp {
 public:
  App(const v1::ServerConfig& config, const Clock* wall_clock)
      : config_(config),
        runtime_{.wall_clock = wall_clock,
                 .metrics = &metrics_,
                 .tenant = &tenant_executor_,
                 .worker = &worker_executor_,
                 .streams = &stream_executor_,
                 .artifacts = &artifact_executor_,
                 .uploads = &upload_executor_,
                 .commits = &commit_executor_,
                 .slow = &slow_executor_,
                 .timer = &timer_} {}

  ~App() override {
    runtime_.Drain();
    watcher_.reset();
    if (agent_ != nullptr) agent_->Stop(milliseconds(0));
    if (rpc_ != nullptr) rpc_->Shutdown(milliseconds(0));
    admin_.reset();
    garbage_thread_ = {};
    sweeper_thread_ = {};
    probe_thread_ = {};
    // The executors' threads use what is declared before them.
  }

  absl::Status Open() {
    for (const auto& step : {&App::OpenStores, &App::OpenIdentity, &App::OpenCertificates,
                             &App::Listen, &App::WriteAddresses}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    StartLoops();
    log::Info("quantryd is ready", {{"tenant", addresses().tenant},
                                    {"tls", !config_.tls_cert_file().empty()},
                                    {"authentication", auth_ != nullptr},
                                    {"worker", addresses().worker},
                                    {"admin", admin_->address()},
                                    {"data_dir", config_.data_dir()},
                                    {"version", QUANTRY_VERSION}});
    return absl::OkStatus();
  }

  const RpcServer::Addresses& addresses() const override { return rpc_->addresses(); }
  std::string admin_address() const override { return admin_->address(); }

  void Drain() override {
    log::Info("draining");
    const auto deadline = std::chrono::steady_clock::now() + seconds(config_.drain_timeout_s());
    const auto left = [&] {
      return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(
                                           deadline - std::chrono::steady_clock::now()));
    };
    runtime_.Drain();
    rpc_->EndServing();
    garbage_thread_.request_stop();
    // The agent still needs the worker port to give its jobs back.
    if (agent_ != nullptr) agent_->Stop(left() * 9 / 10);
    rpc_->Shutdown(left());
    RemoveAddresses();
    log::Info("drained");
  }

 private:
  absl::Status OpenStores() {
    const std::string& data = config_.data_dir();
    JobPolicy policy;
    policy.lease_ttl = seconds(config_.lease_ttl_s());
    policy.first_lease_ttl = std::min<Duration>(policy.first_lease_ttl, policy.lease_ttl);
    policy.max_no_progress = seconds(config_.max_no_progress_s());
    auto setup = OpenJobStore(config_, policy, &clock_, &hub_,
                              [this](const JobKey& job) { OnOtherChanged(job); });
    if (!setup.ok()) return setup.status();
    setup_ = *std::move(setup);
    store_ = NotifyingJobStore(MeteredJobStore(std::move(setup_.store), &clock_, &metrics_), &hub_);
    probe_.emplace(&clock_, StoreProbe::Options{.ask = [this] { return store_->Ping(); }});

    for (const std::string& folder : {config_.run_dir(), data + "/tmp", data + "/worker"}) {
      if (absl::Status status = MakeFolders(folder); !status.ok()) return status;
    }
    // Of an earlier process that was killed.
    RemoveAddresses();
    RemoveQuotes();
    auto allowed = TenantSources::Open({config_.local_roots().begin(), config_.local_roots().end()},
                                       config_.tenant_sources_file());
    if (!allowed.ok()) return allowed.status();
    allowed_sources_ = *std::move(allowed);
    auto blobs = OpenBlobStore(BlobRoot(config_), data + "/uploads");
    if (!blobs.ok()) return blobs.status();
    blobs_ = *std::move(blobs);
    auto artifacts = OpenArtifactStore(config_.artifact_root());
    if (!artifacts.ok()) return artifacts.status();
    artifacts_ = *std::move(artifacts);
    garbage_.emplace(store_.get(), artifacts_.get(), blobs_.get(), &clock_,
                     setup_.page_tokens->StoreId());
    ClaimRoots();
    deleted_jobs_.emplace(store_.get(), artifacts_.get());
    sources_.emplace(&*allowed_sources_, blobs_.get(), data + "/tmp");
    // Quotes read headers of uploads, which only this account may read.
    auto confinement = MakeEngineConfinement(config_.engine_confinement(), "", 0);
    if (!confinement.ok()) return confinement.status();
    engine_ = NewEngineTool(config_.engine_binary(), data + "/tmp", *std::move(confinement));
    return absl::OkStatus();
  }

  // Before another job store takes the roots for its own. It serves all the same: only a
  // collection of garbage does harm there, and that asks again.
  void ClaimRoots() {
    const absl::Status claimed = garbage_->Claim();
    if (claimed.ok()) return;
    log::Warning("no garbage is collected until this job store has its roots",
                 {{"error", std::string(claimed.message())}});
  }

  // A job that waited for another one's result took it, or runs itself now.
  void OnOtherChanged(const JobKey& key) {
    const auto job = store_->Get(key);
    if (job.ok() && IsEnded(job->state)) CountEnded(*job, &metrics_);
    hub_.JobChanged(key);
    hub_.WorkAvailable();
  }

  // A server without an engine still serves what is there.
  void OnCapabilities(const absl::StatusOr<EngineCapabilities>& answer) {
    metrics_.SetEngineVersion(answer.ok() ? answer->version : "");
    if (answer.ok()) return;
    log::Warning(
        "the engine did not tell its methods and is asked again",
        {{"engine", config_.engine_binary()}, {"error", std::string(answer.status().message())}});
  }

  absl::Status OpenIdentity() {
    if (AuthenticationConfigured(config_)) {
      if (config_.tenant_sources_file().empty()) {
        log::Info(
            "every tenant's jobs may read every URI and below all local_roots; "
            "--tenant-sources-file tells them apart");
      }
      auto auth = Authenticator::Open({.principals_file = config_.principals_file(),
                                       .certificates = !config_.tls_client_ca_file().empty(),
                                       .spiffe_trust_domain = config_.spiffe_trust_domain(),
                                       .jwks_file = config_.jwks_file(),
                                       .jwt = {config_.jwt_issuer(), config_.jwt_audience()}});
      if (!auth.ok()) return auth.status();
      auth_ = *std::move(auth);
      runtime_.auth = auth_.get();
    }
    if (auth_ == nullptr || !config_.embedded()) return absl::OkStatus();
    // A new one at each start; the file is for the agent alone.
    const std::string token = NewToken();
    auto principal = MakePrincipal("embedded-agent", RoleName(Role::kWorker), kAllTenants);
    if (!principal.ok()) return principal.status();
    auth_->Trust(token, *principal);
    return WriteFileAtomically(AgentTokenFile(), token + "\n");
  }

  std::string AgentTokenFile() const { return config_.run_dir() + "/agent-token"; }

  absl::Status OpenCertificates() {
    if (config_.tls_cert_file().empty()) return absl::OkStatus();
    auto identity = CheckedCertificates::OfPair(config_.tls_cert_file(), config_.tls_key_file());
    if (!identity.ok()) return identity.status();
    identity_ = *std::move(identity);
    if (config_.tls_client_ca_file().empty()) return absl::OkStatus();
    auto client_ca = CheckedCertificates::OfCas(config_.tls_client_ca_file());
    if (!client_ca.ok()) return client_ca.status();
    client_ca_ = *std::move(client_ca);
    return absl::OkStatus();
  }

  ServerSecurity Security() const {
    return {.identity = identity_.get(),
            .client_ca = client_ca_.get(),
            .crl_dir = config_.tls_crl_dir(),
            .require_client_certificate =
                config_.principals_file().empty() && config_.jwks_file().empty()};
  }

  void WatchCredentials() {
    CredentialWatcher::Options options;
    options.auth = auth_.get();
    if (identity_ != nullptr) options.certificates["server"] = identity_.get();
    if (client_ca_ != nullptr) options.certificates["client_ca"] = client_ca_.get();
    if (options.auth == nullptr && options.certificates.empty()) return;
    options.interval = seconds(config_.credentials_reload_s());
    options.on_reload = [this](const absl::Status& status) { OnReload(status); };
    options.on_certificate = [this](const std::string& certificate, Time end) {
      metrics_.certificate_expiry.With({certificate}).Set(ToSeconds(end.time_since_epoch()));
    };
    options.on_unusable = [this] { metrics_.credential_reloads.With({"error"}).Increment(); };
    options.on_look = [this](const std::string& credential, bool usable) {
      metrics_.credentials_usable.With({credential}).Set(usable ? 1 : 0);
    };
    watcher_.emplace(std::move(options));
  }

  void OnReload(const absl::Status& status) {
    metrics_.credential_reloads.With({status.ok() ? "ok" : "error"}).Increment();
    if (status.ok()) {
      log::Info("credentials were read again");
    } else {
      log::Error("credentials cannot be read again; those before stay",
                 {{"error", std::string(status.message())}});
    }
    runtime_.open_streams.KickAll();  // each looks whether its own still counts
  }

  absl::Status Listen() {
    // Not before what the configuration names is read: its errors need not wait for an engine.
    capabilities_.emplace(engine_.get(), [this](const auto& answer) { OnCapabilities(answer); });
    context_.runtime = &runtime_;
    context_.store = store_.get();
    context_.blobs = blobs_.get();
    context_.artifacts = artifacts_.get();
    context_.garbage = &*garbage_;
    context_.deleted_jobs = &*deleted_jobs_;
    context_.hub = &hub_;
    context_.engine = engine_.get();
    context_.capabilities = &*capabilities_;
    context_.page_tokens = &*setup_.page_tokens;
    context_.sources = &*sources_;
    context_.clock = &clock_;
    context_.limits.max_blob_bytes = std::min(config_.max_blob_bytes(), blobs_->max_blob_bytes());
    context_.local_roots = {config_.local_roots().begin(), config_.local_roots().end()};
    context_.embedded = config_.embedded();
    context_.hub_sources = !config_.embedded() || !config_.hub_endpoint().empty();
    if (setup_.shared()) context_.watch_poll = kSharedWatchPoll;
    context_.start_time = clock_.Now();
    context_.lease_ttl = seconds(config_.lease_ttl_s());
    context_.heartbeat_interval = seconds(config_.heartbeat_interval_s());
    context_.connection_age = seconds(config_.max_connection_age_s());
    context_.call_memory_bytes = config_.call_memory_bytes();
    auto rpc =
        StartRpcServer(&context_, {config_.listen(), config_.worker_listen(), ""}, Security());
    if (!rpc.ok()) return rpc.status();
    rpc_ = *std::move(rpc);
    auto admin = HttpAdmin::Start(
        config_.admin_listen(),
        StandardHandlers([this] { return metrics_.Render(); }, [this] { return NotReady(); }),
        AdminAccess(config_), AdminPages());
    if (!admin.ok()) return admin.status();
    admin_ = *std::move(admin);
    return absl::OkStatus();
  }

  // Names of all tenants' jobs: for this machine alone.
  HttpAdmin::Pages AdminPages() {
    const auto address = ParseListenAddress(config_.admin_listen());
    if (!config_.status_page() || !address.ok() || !IsLoopback(*address)) return {};
    return StatusPages(store_.get(), setup_.view, &clock_);
  }

  std::string NotReady() {
    if (runtime_.draining) return "the server is shutting down";
    const absl::Status status = probe_->Status();
    return status.ok() ? "" : absl::StrCat("the store: ", std::string(status.message()));
  }

  absl::Status WriteAddresses() {
    for (const auto& [name, address] :
         {std::pair("worker", addresses().worker), std::pair("admin", admin_->address()),
          std::pair("tenant", addresses().tenant)}) {
      absl::Status status =
          WriteFileAtomically(absl::StrCat(config_.run_dir(), "/", name), address + "\n");
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void RemoveAddresses() {
    std::error_code ignored;
    for (const char* name : {"tenant", "worker", "admin", "agent-token"}) {
      fs::remove(absl::StrCat(config_.run_dir(), "/", name), ignored);
    }
  }

  // What calls for a quote put there (EngineTool, Sources).
  void RemoveQuotes() {
    std::error_code error;
    fs::directory_iterator it(config_.data_dir() + "/tmp", error);
    for (; !error && it != fs::directory_iterator(); it.increment(error)) {
      std::error_code ignored;
      if (it->path().filename().native().starts_with("quote-")) fs::remove_all(*it, ignored);
    }
  }

  void StartLoops() {
    WatchCredentials();
    probe_thread_ = std::jthread([this](const std::stop_token& stop) { probe_->Run(stop); });
    Sweeper::Options options;
    options.interval = seconds(config_.sweep_interval_s());
    options.on_sweep = [this](const absl::StatusOr<SweepReport>& report) { OnSweep(report); };
    sweeper_.emplace(store_.get(), &clock_, std::move(options));
    sweeper_thread_ = std::jthread([this](std::stop_token stop) { sweeper_->Run(stop); });
    if (config_.garbage_collection_interval_s() > 0) {
      garbage_thread_ = std::jthread([this](const std::stop_token& stop) {
        garbage_->Run(
            seconds(config_.garbage_collection_interval_s()),
            [this](const absl::StatusOr<GarbageReport>& report) { OnGarbageCollected(report); },
            stop);
      });
    }
    if (!config_.embedded()) return;
    EmbeddedAgent::Options agent;
    agent.argv =
        EmbeddedWorkerCommand(config_, addresses().agent, auth_ != nullptr ? AgentTokenFile() : "");
    agent.on_restart = [this] { metrics_.agent_restarts.Increment(); };
    agent_ = std::make_unique<EmbeddedAgent>(std::move(agent));
  }

  // The collector logs what it did.
  void OnGarbageCollected(const absl::StatusOr<GarbageReport>& report) {
    if (absl::IsCancelled(report.status())) return;
    const bool complete = report.ok() && report->failures == 0;
    metrics_.garbage_collections.With({complete ? "ok" : "error"}).Increment();
    if (report.ok()) return;
    log::Warning("garbage cannot be collected",
                 {{"error", std::string(report.status().message())}});
  }

  // The sweep's beat also refreshes gauges and health, and wakes who removes deleted jobs.
  void OnSweep(const absl::StatusOr<SweepReport>& report) {
    // glibc keeps what is freed between other things. Ended calls' messages would stay
    // with the process, flood upon flood, however little --call-memory-bytes allows.
    malloc_trim(0);
    rpc_->SetServing(report.ok());
    if (!report.ok()) {
      log::Error("sweep failed", {{"error", std::string(report.status().message())}});
      MissQueue();
      return;
    }
    if (report->lost + report->no_progress + report->max_run > 0) {
      log::Warning("took jobs from their workers", {{"lost", report->lost},
                                                    {"no_progress", report->no_progress},
                                                    {"max_run", report->max_run}});
    }
    if (report->max_pending > 0) {
      log::Warning("ended jobs that waited too long", {{"max_pending", report->max_pending}});
    }
    AuditExpired(report->removed);
    const Time now = clock_.Now();
    if (const auto stats = store_->Stats(now); stats.ok()) {
      metrics_.SetQueue(*stats, now);
      queue_missed_since_.reset();
    } else {
      MissQueue();
    }
    if (!report->left_to_another) deleted_jobs_->Wake();  // else another server removes them
  }

  // A gap would start the waits of alerts over: not for an outage of a moment.
  void MissQueue() {
    const MonotonicTime now = std::chrono::steady_clock::now();
    if (!queue_missed_since_) queue_missed_since_ = now;
    if (now - *queue_missed_since_ >= kQueueNews) metrics_.ForgetQueue();
  }

  // Nobody asks for it, so the server is who did it. As with calls, no line
  // without authentication.
  void AuditExpired(const std::vector<JobKey>& removed) {
    if (auth_ == nullptr) return;
    for (const JobKey& job : removed) {
      metrics_.audit_lines.With({"ok"}).Increment();
      log::Audit({{"principal", "quantryd"},
                  {"role", "server"},
                  {"tenant", job.tenant},
                  {"rpc", "expiry"},
                  {"resource", FormatJobName(job.tenant, job.id)},
                  {"request", ""},
                  {"outcome", "OK"},
                  {"reason", ""}});
    }
  }

  // Destroyed from the bottom up: threads first, what they use last.
  const v1::ServerConfig config_;
  FollowingClock clock_;  // the job store's
  ServerMetrics metrics_{AllMethodNames(), QuantizationMethods()};
  WakeupHub hub_;
  JobStoreSetup setup_;
  std::unique_ptr<JobStore> store_;
  std::optional<StoreProbe> probe_;
  std::optional<TenantSources> allowed_sources_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::optional<GarbageCollector> garbage_;
  std::optional<DeletedJobs> deleted_jobs_;
  std::optional<Sources> sources_;
  std::unique_ptr<EngineTool> engine_;
  std::optional<CapabilitiesCache> capabilities_;
  ServiceContext context_;
  Executor tenant_executor_{kTenantThreads, kTenantQueue};
  Executor worker_executor_{kWorkerThreads, kWorkerQueue};
  Executor stream_executor_{kStreamThreads, 0};
  Executor artifact_executor_{kArtifactThreads, kArtifactQueue};
  Executor upload_executor_{kUploadThreads, 0};
  Executor commit_executor_{kCommitThreads, kCommitQueue};
  Executor slow_executor_{kSlowThreads, kSlowQueue};
  Timer timer_;
  RpcRuntime runtime_;
  std::unique_ptr<Authenticator> auth_;
  std::unique_ptr<CheckedCertificates> identity_;   // null: no TLS
  std::unique_ptr<CheckedCertificates> client_ca_;  // null: no client certificates
  std::unique_ptr<RpcServer> rpc_;
  std::unique_ptr<HttpAdmin> admin_;
  std::optional<CredentialWatcher> watcher_;
  std::optional<Sweeper> sweeper_;
  std::optional<MonotonicTime> queue_missed_since_;  // the sweeper's thread
  std::jthread sweeper_thread_;
  std::jthread garbage_thread_;
  std::jthread probe_thread_;
  std::unique_ptr<EmbeddedAgent> agent_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerApp>> ServerApp::Start(const v1::ServerConfig& config,
                                                            const Clock* wall_clock) {
  static const SystemClock system_clock;
  auto app = std::make_unique<App>(config, wall_clock == nullptr ? &system_clock : wall_clock);
  if (absl::Status status = app->Open(); !status.ok()) return status;
  return app;
}

}  // namespace quantry::server
