#include "server/server_config.h"

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config_fields.h"
#include "common/confined.h"
#include "common/errors.h"
#include "common/http_admin.h"
#include "common/http_host.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/storage.h"
#include "server/artifacts/object_root.h"
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

absl::Status NamingFlag(std::string_view field, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat("--", FlagName(field), ": ", std::string(status.message())));
}

// What listening beyond loopback still takes; "" when nothing (design.md §7).
std::string MissingForTheWorld(const v1::ServerConfig& config) {
  std::vector<std::string> missing;
  if (config.tls_cert_file().empty()) missing.emplace_back("--tls-cert-file");
  if (config.tls_key_file().empty()) missing.emplace_back("--tls-key-file");
  if (!AuthenticationConfigured(config)) {
    missing.emplace_back("one of --principals-file, --tls-client-ca-file and --jwks-file");
  }
  return absl::StrJoin(missing, ", ");
}

absl::Status CheckAddress(std::string_view field, const std::string& text,
                          const v1::ServerConfig& config) {
  auto address = ParseListenAddress(text);
  if (!address.ok()) return NamingFlag(field, address.status());
  const std::string missing = MissingForTheWorld(config);
  return missing.empty() ? absl::OkStatus() : NamingFlag(field, RequireLoopback(*address, missing));
}

absl::Status CheckIdentity(const v1::ServerConfig& config) {
  if (config.tls_cert_file().empty() != config.tls_key_file().empty()) {
    const bool no_key = config.tls_key_file().empty();
    return Bad(no_key ? "tls_key_file" : "tls_cert_file", "both of certificate and key",
               no_key ? "a certificate alone" : "a key alone");
  }
  if (!config.tls_client_ca_file().empty() && config.tls_cert_file().empty()) {
    return Bad("tls_client_ca_file", "--tls-cert-file and --tls-key-file beside it", "");
  }
  if (!config.tls_crl_dir().empty() && config.tls_client_ca_file().empty()) {
    return Bad("tls_crl_dir", "--tls-client-ca-file beside it: lists are of its CAs", "");
  }
  const bool jwt = !config.jwks_file().empty();
  if (jwt && config.jwt_issuer().empty()) {
    return Bad("jwt_issuer", "the iss of the tokens that --jwks-file is for", "");
  }
  if (jwt && config.jwt_audience().empty()) {
    return Bad("jwt_audience", "the aud of the tokens that are for this server", "");
  }
  return CheckRange("credentials_reload_s", config.credentials_reload_s(), 1, 3600);
}

absl::Status CheckLocalRoots(const v1::ServerConfig& config) {
  return LocalRoots::Open({config.local_roots().begin(), config.local_roots().end()}).status();
}

absl::Status CheckValues(const v1::ServerConfig& config) {
  for (const absl::Status& status :
       {CheckAddress("listen", config.listen(), config),
        CheckAddress("worker_listen", config.worker_listen(), config),
        NamingFlag("admin_listen",
                   CheckAdminAddress(config.admin_listen(), config.admin_plaintext())),
        NamingFlag("admin_hosts", CheckHostNames(AdminAccess(config).hosts)), CheckIdentity(config),
        CheckRange("lease_ttl_s", config.lease_ttl_s(), 3, 3600),
        CheckRange("heartbeat_interval_s", config.heartbeat_interval_s(), 1,
                   config.lease_ttl_s() / 3),
        // A sweep later than ttl / 2 reads as an outage and judges nobody.
        CheckRange("sweep_interval_s", config.sweep_interval_s(), 1, config.lease_ttl_s() / 3),
        CheckRange("max_no_progress_s", config.max_no_progress_s(), 1, std::int64_t{30} * 86400),
        CheckRange("drain_timeout_s", config.drain_timeout_s(), 1, 3600),
        CheckRange("max_connection_age_s", config.max_connection_age_s(), 1,
                   std::int64_t{7} * 86400),
        // Less does not hold a few messages of workers.
        CheckRange("call_memory_bytes", config.call_memory_bytes(), 32 << 20,
                   std::int64_t{1} << 40),
        CheckRange("max_blob_bytes", config.max_blob_bytes(), 1, std::int64_t{1} << 50),
        CheckRange("embedded_slots", config.embedded_slots(), 1, 256),
        CheckRange("job_store_connections", config.job_store_connections(), 1, 1000),
        CheckRange("garbage_collection_interval_s", config.garbage_collection_interval_s(), 0,
                   std::int64_t{365} * 86400),
        NamingFlag("local_roots", CheckLocalRoots(config)), CheckJobStore(config),
        CheckRootUri("artifact_root", config.artifact_root()),
        CheckRootUri("blob_root", BlobRoot(config)),
        log::Configure(config.log_format(), config.log_level())}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

bool AuthenticationConfigured(const v1::ServerConfig& config) {
  return !config.principals_file().empty() || !config.tls_client_ca_file().empty() ||
         !config.jwks_file().empty();
}

std::string BlobRoot(const v1::ServerConfig& config) {
  return config.blob_root().empty() ? UriFromLocalPath(config.blob_dir()) : config.blob_root();
}

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
  if (!config->blob_dir().empty() && !config->blob_root().empty()) {
    return Bad("blob_root", "one of it and --blob-dir: both say where uploads are kept", "both");
  }
  if (config->blob_root().empty() && config->blob_dir().empty()) {
    config->set_blob_dir((data_dir / "blobs").string());
  }
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
