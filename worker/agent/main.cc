// quantry-worker: reads options, builds the agent's parts, runs them.
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "common/config_loader.h"
#include "common/device_name.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/grpc_credentials.h"
#include "common/grpc_log.h"
#include "common/grpc_reconnect.h"
#include "common/http_admin.h"
#include "common/http_host.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/sandbox/landlock.h"
#include "common/storage.h"
#include "quantry/v1/config.pb.h"
#include "worker/agent/agent.h"
#include "worker/agent/gpu_inventory.h"
#include "worker/agent/hub_source.h"
#include "worker/agent/visible_gpus.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

std::string HostName() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string DefaultWorkDir() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  const fs::path base = state != nullptr  ? fs::path(state)
                        : home != nullptr ? fs::path(home) / ".local/state"
                                          : fs::temp_directory_path();
  return base / "quantry/worker";
}

// The same after a restart, and another one for each worker of a machine: work
// folders are locked.
std::string DefaultWorkerId(const std::string& work_dir) {
  std::error_code error;
  fs::path whole = fs::weakly_canonical(fs::absolute(work_dir, error), error);
  if (error) whole = work_dir;
  if (!whole.has_filename()) whole = whole.parent_path();  // "folder/"
  return HostName() + "-" + Sha256Hex(whole.native()).substr(0, 8);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(
    const v1::WorkerConfig& config) {
  return MakeChannelCredentials({.ca_file = config.tls_ca_file(),
                                 .cert_file = config.client_cert_file(),
                                 .key_file = config.client_key_file(),
                                 .token_file = config.token_file(),
                                 .on_unusable =
                                     [](const std::string& why) {
                                       log::Error("a certificate cannot be used", {{"error", why}});
                                     }},
                                config.server());
}

HubOptions HubOptionsOf(const v1::WorkerConfig& config) {
  HubOptions options;
  options.fetch.endpoint = config.hub_endpoint();
  while (options.fetch.endpoint.ends_with('/')) options.fetch.endpoint.pop_back();
  options.fetch.token_file = config.hub_token_file();
  options.fetch.redirect_hosts = {config.hub_redirect_hosts().begin(),
                                  config.hub_redirect_hosts().end()};
  if (options.fetch.redirect_hosts.empty() && options.fetch.endpoint == "https://huggingface.co") {
    options.fetch.redirect_hosts = {"*.huggingface.co", "*.hf.co"};
  }
  options.max_bytes = config.hub_max_bytes();
  return options;
}

// As a job may name it: a typo here would fail each job that leaves it to the worker.
absl::Status CheckDevice(const std::string& device) {
  if (IsDeviceName(device)) return absl::OkStatus();
  return MakeError(Reason::kInvalidConfig,
                   "--device: wanted auto, cpu, cuda or cuda:N, got " + device);
}

// Computed defaults and checks; what the proto documents.
absl::Status FinishConfig(v1::WorkerConfig& config) {
  const auto fill = [](std::string* field, const std::string& value) {
    if (field->empty()) *field = value;
  };
  fill(config.mutable_work_dir(), DefaultWorkDir());
  fill(config.mutable_worker_id(), DefaultWorkerId(config.work_dir()));
  fill(config.mutable_engine_binary(),
       fs::read_symlink("/proc/self/exe").parent_path() / "quantry-engine");
  if (config.slots() < 1 || config.slots() > 256) {
    return MakeError(Reason::kInvalidConfig,
                     "slots: wanted 1 to 256, got " + std::to_string(config.slots()));
  }
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  if (config.threads() == 0) config.set_threads(std::max(1, cores / config.slots()));
  if (config.threads() < 0) {
    return MakeError(Reason::kInvalidConfig,
                     "threads: wanted 1 or more, got " + std::to_string(config.threads()));
  }
  if (auto status = CheckDevice(config.device()); !status.ok()) return status;
  const std::pair<const char*, std::int64_t> numbers[] = {
      {"store_patience_s", config.store_patience_s()},
      {"min_free_disk_bytes", config.min_free_disk_bytes()},
      {"max_cache_bytes", config.max_cache_bytes()},
      {"engine_max_file_bytes", config.engine_max_file_bytes()}};
  for (const auto& [name, value] : numbers) {
    if (value >= 0) continue;
    return MakeError(Reason::kInvalidConfig,
                     std::string(name) + ": wanted 0 or more, got " + std::to_string(value));
  }
  // Said now, not by the hundredth try to connect.
  if (auto made = Credentials(config); !made.ok()) return made.status();
  if (absl::Status status = CheckAdminAddress(config.admin_listen(), config.admin_plaintext());
      !status.ok()) {
    return MakeError(Reason::kInvalidConfig, "--admin-listen: " + std::string(status.message()));
  }
  if (absl::Status status = CheckHostNames(AdminAccess(config).hosts); !status.ok()) {
    return MakeError(Reason::kInvalidConfig, "--admin-hosts: " + std::string(status.message()));
  }
  // Who is not root may look at the settings of a service that will be.
  if (geteuid() == 0) {
    const auto confinement = MakeEngineConfinement(
        config.engine_confinement(), config.engine_user(), config.engine_max_file_bytes());
    if (!confinement.ok()) return confinement.status();
  }
  return HubSource::Check(HubOptionsOf(config));
}

std::optional<std::string> VisibleDevices() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return visible == nullptr ? std::nullopt : std::optional<std::string>(visible);
}

// GPUs as NVML counts them, also for engines, which get these variables.
void CountGpusAsNvmlDoes() { setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", /*overwrite=*/0); }

// What engines are told to compute on. Of a worker that has one GPU they see no other: what a job
// calls "cuda" is that one.
std::string ShowOnlyItsGpu(const std::string& device) {
  int index = 0;
  if (!absl::SimpleAtoi(absl::StripPrefix(device, "cuda:"), &index)) return device;
  setenv("CUDA_VISIBLE_DEVICES", OnlyVisible(VisibleDevices(), index).c_str(), /*overwrite=*/1);
  return "cuda";
}

// What servers are told: the GPUs that engines see, none where they can use none.
std::vector<GpuDescription> UsableGpus(const EngineOptions& engine, const std::string& device,
                                       const GpuInventory& inventory) {
  if (device == "cpu") return {};
  auto gpus = inventory.List();
  if (gpus.empty() && device == "cuda") {
    log::Warning(
        "no job that asks for a GPU comes here: NVML shows none of those that engines may use (MIG "
        "slices it does not; otherwise see that libnvidia-ml.so.1 is there)");
  }
  if (gpus.empty() || device != "auto") return gpus;
  if (absl::Status usable = ProbeDevice(engine, "cuda"); !usable.ok()) {
    log::Warning("GPUs are here that the engine cannot use: it computes on the CPU",
                 {{"gpus", gpus.size()}, {"why", std::string(usable.message())}});
    return {};
  }
  return gpus;
}

v1::WorkerInfo MakeInfo(const v1::WorkerConfig& config, const EngineAbilities& engine,
                        const std::vector<GpuDescription>& gpus) {
  v1::WorkerInfo info;
  info.set_worker_id(config.worker_id());
  info.set_incarnation(NewUuid4());
  info.set_version(QUANTRY_VERSION);
  info.set_engine_version(engine.version);
  for (const std::string& method : engine.methods) info.add_methods(method);
  for (const GpuDescription& gpu : gpus) {
    auto* added = info.add_gpus();
    added->set_uuid(gpu.uuid);
    added->set_model(gpu.model);
    added->set_memory_bytes(gpu.memory_bytes);
    added->set_compute_capability(gpu.compute_capability);
  }
  info.set_slots(config.slots());
  info.set_cores(static_cast<int>(std::thread::hardware_concurrency()));
  struct sysinfo memory {};
  if (sysinfo(&memory) == 0) {
    info.set_host_memory_bytes(static_cast<std::int64_t>(memory.totalram) * memory.mem_unit);
  }
  return info;
}

// What gRPC says without words when somebody else listens there.
absl::Status ExplainServer(const absl::Status& status, const std::string& server) {
  if (!absl::IsUnimplemented(status)) return status;
  return MakeError(Reason::kInvalidConfig,
                   server +
                       " has no worker service: wanted quantryd's worker port (7071 unless its "
                       "--worker-listen says otherwise), got another one, perhaps the tenant port "
                       "that clients find in QUANTRY_SERVER; name the worker port with --server",
                   {{"server", server}});
}

// Hands SIGTERM and SIGINT to the agent. Both are blocked in every thread and
// taken here, so that no handler runs anywhere.
class SignalThread {
 public:
  static sigset_t Signals() {
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGTERM, SIGINT}) sigaddset(&set, number);
    return set;
  }
  static void Block() {
    const sigset_t set = Signals();
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    std::signal(SIGPIPE, SIG_IGN);
  }
  explicit SignalThread(Agent& agent)
      : thread_([&agent](std::stop_token stop) {
          const sigset_t set = Signals();
          const timespec interval{.tv_sec = 0, .tv_nsec = 200'000'000};
          while (!stop.stop_requested()) {
            if (sigtimedwait(&set, nullptr, &interval) > 0) agent.Drain();
          }
        }) {}

 private:
  std::jthread thread_;
};

// A slow start says nothing against the binary or its confinement.
absl::Status EngineDoesNotAnswer(const absl::Status& why, const std::string& binary) {
  const bool slow = absl::IsDeadlineExceeded(why);
  return MakeError(
      slow ? Reason::kDeadlineExceeded : Reason::kInvalidConfig,
      "the engine does not answer: " + std::string(why.message()) +
          (slow ? "; start the worker again"
                : "; name quantry-engine with --engine-binary, or run it unconfined with "
                  "--engine-confinement=false"),
      {{"engine_binary", binary}});
}

absl::Status RunWorker(const v1::WorkerConfig& config) {
  CountGpusAsNvmlDoes();
  auto work_dir = WorkDir::Open(config.work_dir());
  if (!work_dir.ok()) return work_dir.status();
  auto confinement = MakeEngineConfinement(config.engine_confinement(), config.engine_user(),
                                           config.engine_max_file_bytes());
  if (!confinement.ok()) return confinement.status();
  if (config.engine_confinement() && config.engine_user().empty() && geteuid() == 0) {
    log::Warning(
        LandlockRules::Abi() > 0
            ? "engines run as root, without its capabilities; Landlock keeps them to their "
              "job's files and libraries"
            : "engines run as root, without its capabilities, and as this kernel has no "
              "Landlock they may read and write what root owns",
        {{"next",
          "name an account with --engine-user; --engine-user=root says that it "
          "is meant"}});
  }
  if (auto status = CheckEngineReaches(*confinement, work_dir->path()); !status.ok()) return status;
  EngineOptions engine_options;
  engine_options.binary = config.engine_binary();
  engine_options.confinement = *std::move(confinement);
  const auto abilities = ProbeEngine(engine_options);
  if (!abilities.ok()) {
    return EngineDoesNotAnswer(abilities.status(), config.engine_binary());
  }
  if (auto usable = ProbeDevice(engine_options, config.device()); !usable.ok()) return usable;
  const std::string device = ShowOnlyItsGpu(config.device());
  const VisibleInventory gpus(GpuInventory::Open(), VisibleDevices());
  WorkerMetrics metrics(config.slots(), abilities->version, gpus);
  auto credentials = Credentials(config);
  if (!credentials.ok()) return credentials.status();
  WorkerClient client(config.server(),
                      MakeInfo(config, *abilities, UsableGpus(engine_options, device, gpus)),
                      *credentials);
  BlobCache cache(work_dir->cache(), {.spare_bytes = config.min_free_disk_bytes(),
                                      .max_bytes = config.max_cache_bytes()});
  const HubSource hub(HubOptionsOf(config));
  const Materializer materializer(cache, {config.local_roots().begin(), config.local_roots().end()},
                                  &hub);
  const EngineRunner engine(engine_options);
  Agent agent({.slots = config.slots(),
               .once = config.once(),
               .max_idle = std::chrono::seconds(config.max_idle_s()),
               .min_free_disk_bytes = config.min_free_disk_bytes(),
               .drain_grace = std::chrono::seconds(config.drain_timeout_s()),
               .patience = {.total = std::chrono::seconds(config.store_patience_s())}},
              client, *work_dir, cache, materializer, engine, metrics,
              {.device = device, .threads = config.threads()});
  auto admin = HttpAdmin::Start(config.admin_listen(),
                                StandardHandlers([&metrics] { return metrics.Text(); },
                                                 [&agent] { return agent.NotReady(); }),
                                AdminAccess(config));
  if (!admin.ok()) return admin.status();
  log::Info("quantry-worker starts", {{"version", QUANTRY_VERSION},
                                      {"server", config.server()},
                                      {"admin", (*admin)->address()},
                                      {"work_dir", work_dir->path()},
                                      {"gpus", client.info().gpus_size()},
                                      {"engine_confinement", abilities->confinement}});
  const SignalThread signals(agent);
  return ExplainServer(agent.Run(), config.server());
}

}  // namespace
}  // namespace quantry::agent

int main(int argc, char** argv) {
  using quantry::v1::WorkerConfig;
  quantry::FindServersQuickly();
  quantry::agent::SignalThread::Block();
  WorkerConfig config;
  const auto finish = [](google::protobuf::Message* message) {
    return quantry::agent::FinishConfig(*static_cast<WorkerConfig*>(message));
  };
  if (const auto code = quantry::LoadConfigOrExit(
          {"quantry-worker", "Runs quantization jobs for a quantryd server."}, argc, argv, &config,
          finish)) {
    return *code;
  }
  if (const auto status = quantry::log::Configure(config.log_format(), config.log_level());
      !status.ok()) {
    quantry::log::Error(std::string(status.message()));
    return 2;
  }
  quantry::LogForGrpc();
  const auto status = quantry::agent::RunWorker(config);
  quantry::FinalizeStorage();
  if (status.ok()) return 0;
  quantry::log::Error(status.message().empty() ? status.ToString() : std::string(status.message()));
  return 1;
}
