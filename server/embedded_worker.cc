#include "server/embedded_worker.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/line_reader.h"
#include "common/process.h"
#include "server/embedded_agent.h"
#include "server/job_store_setup.h"

namespace quantry::server {
namespace {

constexpr std::chrono::seconds kCheckTime{60};  // its libraries may come from a cold disk
constexpr std::size_t kMaxLine = 16 << 10;

// The agent has nine tenths of the server's time to drain, and gives its jobs back in the last
// seconds of that.
std::int64_t DrainSeconds(const v1::ServerConfig& config) {
  return std::max<std::int64_t>(1, config.drain_timeout_s() * 9 / 10 - 3);
}

void AddHubFlags(const v1::ServerConfig& config, std::vector<std::string>& argv) {
  if (config.hub_endpoint().empty()) return;
  argv.push_back(absl::StrCat("--hub-endpoint=", config.hub_endpoint()));
  if (!config.hub_token_file().empty()) {
    argv.push_back(absl::StrCat("--hub-token-file=", config.hub_token_file()));
  }
  for (const std::string& host : config.hub_redirect_hosts()) {
    argv.push_back(absl::StrCat("--hub-redirect-hosts=", host));
  }
}

}  // namespace

std::vector<std::string> EmbeddedWorkerCommand(const v1::ServerConfig& config,
                                               std::string_view server,
                                               std::string_view token_file) {
  std::vector<std::string> argv = {
      config.worker_binary(),
      absl::StrCat("--server=", std::string(server)),
      absl::StrCat("--work-dir=", config.data_dir(), "/worker"),
      absl::StrCat("--worker-id=", EmbeddedWorkerId(config)),
      "--admin-listen=127.0.0.1:0",
      absl::StrCat("--slots=", config.embedded_slots()),
      absl::StrCat("--engine-binary=", config.engine_binary()),
      absl::StrCat("--engine-confinement=", config.engine_confinement() ? "true" : "false"),
      absl::StrCat("--engine-user=", config.engine_user()),
      absl::StrCat("--drain-timeout-s=", DrainSeconds(config)),
      absl::StrCat("--log-format=", config.log_format()),
      absl::StrCat("--log-level=", config.log_level())};
  if (!token_file.empty()) argv.push_back(absl::StrCat("--token-file=", std::string(token_file)));
  AddHubFlags(config, argv);
  return argv;
}

absl::Status CheckEmbeddedWorker(const v1::ServerConfig& config) {
  if (!config.embedded()) return absl::OkStatus();
  ChildOptions options;
  options.argv = EmbeddedWorkerCommand(config, config.worker_listen(), "");
  options.argv.emplace_back("--check-config");
  options.environment = AgentEnvironment();
  auto child = ChildProcess::Spawn(options);
  if (!child.ok()) {
    return MakeError(Reason::kInvalidConfig,
                     absl::StrCat("--worker-binary: ", std::string(child.status().message())));
  }
  const auto exit = child->Wait(kCheckTime);
  if (exit && exit->ok()) return absl::OkStatus();
  std::string said = !exit ? absl::StrCat("no answer within ", kCheckTime.count(), " s")
                           : absl::StrCat("exit status ", exit->code, ", signal ", exit->signal);
  LineReader(child->stderr_fd(), kMaxLine).Drain([&said](std::string_view line, bool) {
    said = std::string(line);
  });
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat("the embedded worker cannot run with these settings: ", said));
}

}  // namespace quantry::server
