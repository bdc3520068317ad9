#include "server/server_config.h"

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/config_fields.h"
#include "common/errors.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "server/job_store_setup.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

absl::Status Bad(std::string_view field, std::string_view wanted, const std::string& got) {
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat("--", FlagName(field), ": wanted ", std::string(wanted), ", got ",
                                got.empty() ? "nothing" : got));
}

// $XDG_STATE_HOME/quantry or ~/.local/state/quantry; "" when neither is known.
std::string DefaultDataDir() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return absl::StrCat(state, "/quantry");
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home == '/') return absl::StrCat(home, "/.local/state/quantry");
  return "";
}

std::string BesideThisProgram(std::string_view name) {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / name).string();
}

absl::Status CheckRange(std::string_view field, std::int64_t value, std::int64_t lo,
                        std::int64_t hi) {
  if (value >= lo && value <= hi) return absl::OkStatus();
  return Bad(field, absl::StrCat(lo, " to ", hi), absl::StrCat(value));
}

absl::Status CheckAddress(std::string_view field, const std::string& text) {
  auto address = ParseListenAddress(text);
  absl::Status status = address.ok() ? RequireLoopback(*address) : address.status();
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("--", FlagName(field), ": ", std::string(status.message())));
}

absl::Status CheckValues(const v1::ServerConfig& config) {
  for (const absl::Status& status :
       {CheckAddress("listen", config.listen()),
        CheckAddress("worker_listen", config.worker_listen()),
        CheckAddress("admin_listen", config.admin_listen()),
        CheckRange("lease_ttl_s", config.lease_ttl_s(), 3, 3600),
        CheckRange("heartbeat_interval_s", config.heartbeat_interval_s(), 1,
                   config.lease_ttl_s() / 3),
        // A sweep later than ttl / 2 reads as an outage and judges nobody.
        CheckRange("sweep_interval_s", config.sweep_interval_s(), 1, config.lease_ttl_s() / 3),
        CheckRange("max_no_progress_s", config.max_no_progress_s(), 1, 30 * 86400),
        CheckRange("drain_timeout_s", config.drain_timeout_s(), 1, 3600),
        CheckRange("max_blob_bytes", config.max_blob_bytes(), 1, std::int64_t{1} << 50),
        CheckRange("embedded_slots", config.embedded_slots(), 1, 256),
        CheckRange("job_store_connections", config.job_store_connections(), 1, 1000),
        CheckJobStore(config), log::Configure(config.log_format(), config.log_level())}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FinishServerConfig(v1::ServerConfig* config) {
  if (config->data_dir().empty()) config->set_data_dir(DefaultDataDir());
  std::error_code error;
  const fs::path data_dir = fs::absolute(config->data_dir(), error).lexically_normal();
  if (config->data_dir().empty() || error) {
    return Bad("data_dir", "a folder (HOME is not set)", config->data_dir());
  }
  config->set_data_dir(data_dir.string());
  if (config->artifact_root().empty()) {
    config->set_artifact_root(absl::StrCat("file://", (data_dir / "artifacts").string()));
  }
  if (config->blob_dir().empty()) config->set_blob_dir((data_dir / "blobs").string());
  if (config->run_dir().empty()) config->set_run_dir((data_dir / "run").string());
  if (config->worker_binary().empty()) {
    config->set_worker_binary(BesideThisProgram("quantry-worker"));
  }
  if (config->engine_binary().empty()) {
    config->set_engine_binary(BesideThisProgram("quantry-engine"));
  }
  return CheckValues(*config);
}

}  // namespace quantry::server
