// quantryd: reads options, builds the server, runs it until SIGTERM or SIGINT.
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>

#include "common/config_loader.h"
#include "common/grpc_log.h"
#include "common/log.h"
#include "common/storage.h"
#include "quantry/v1/config.pb.h"
#include "server/auth/token_command.h"
#include "server/embedded_worker.h"
#include "server/server_app.h"
#include "server/server_config.h"

namespace {

// Blocked in all threads, so that only sigwait gets them. Children start with
// a clean mask.
sigset_t BlockStopSignals() {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return stop;
}

// Ends the process, with status 0, unless it has ended by itself by `deadline`: what can take
// longer (an object store's listing, say) a crash may interrupt as well.
class LastResort {
 public:
  explicit LastResort(std::chrono::steady_clock::time_point deadline)
      : thread_([this, deadline](const std::stop_token& done) {
          std::unique_lock lock(mutex_);
          if (ended_.wait_until(lock, done, deadline, [] { return false; })) return;
          if (done.stop_requested()) return;
          quantry::log::Warning("what did not end within --drain-timeout-s is left off");
          std::_Exit(0);
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any ended_;
  std::jthread thread_;  // last: it uses the others
};

// Until a stop signal; the exit status.
int Serve(const quantry::v1::ServerConfig& config, const sigset_t& stop) {
  constexpr auto kUndo = std::chrono::seconds(5);  // what comes after the drain
  std::optional<LastResort> last_resort;           // outlives the app
  auto app = quantry::server::ServerApp::Start(config);
  if (!app.ok()) {
    std::fprintf(stderr, "quantryd: %s\n", std::string(app.status().message()).c_str());
    return 1;
  }
  int signal_number = 0;
  sigwait(&stop, &signal_number);
  // A second signal ends the process at once.
  pthread_sigmask(SIG_UNBLOCK, &stop, nullptr);
  last_resort.emplace(std::chrono::steady_clock::now() +
                      std::chrono::seconds(config.drain_timeout_s()) + kUndo);
  (*app)->Drain();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "token") {
    return quantry::server::RunTokenCommand(argc - 2, argv + 2);
  }
  quantry::v1::ServerConfig config;
  const auto done = quantry::LoadConfigOrExit(
      {"quantryd",
       "quantization service: queue, leases, events, artifacts.\n"
       "`quantryd token create --help` tells how tokens for callers are made."},
      argc, argv, &config, [&config](google::protobuf::Message*) {
        const auto finished = quantry::server::FinishServerConfig(&config);
        return finished.ok() ? quantry::server::CheckEmbeddedWorker(config) : finished;
      });
  if (done) return *done;
  quantry::LogForGrpc();
  const sigset_t stop = BlockStopSignals();
  const int status = Serve(config, stop);
  quantry::FinalizeStorage();
  return status;
}
