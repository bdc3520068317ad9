// quantryd: reads options, builds the server, runs it until SIGTERM or SIGINT.
#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>

#include "common/config_loader.h"
#include "common/grpc_log.h"
#include "common/log.h"
#include "common/storage.h"
#include "quantry/v1/config.pb.h"
#include "server/auth/token_command.h"
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

// Until a stop signal; the exit status.
int Serve(const quantry::v1::ServerConfig& config, const sigset_t& stop) {
  auto app = quantry::server::ServerApp::Start(config);
  if (!app.ok()) {
    std::fprintf(stderr, "quantryd: %s\n", std::string(app.status().message()).c_str());
    return 1;
  }
  int signal_number = 0;
  sigwait(&stop, &signal_number);
  // A second signal ends the process at once.
  pthread_sigmask(SIG_UNBLOCK, &stop, nullptr);
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
        return quantry::server::FinishServerConfig(&config);
      });
  if (done) return *done;
  quantry::LogForGrpc();
  const sigset_t stop = BlockStopSignals();
  const int status = Serve(config, stop);
  quantry::FinalizeStorage();
  return status;
}
