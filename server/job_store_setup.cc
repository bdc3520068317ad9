#include "server/job_store_setup.h"

#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "server/jobs/postgres/conninfo.h"
#include "server/jobs/postgres_job_store.h"
#include "server/jobs/sqlite_job_store.h"

namespace quantry::server {
namespace {

constexpr const char* kSqlite = "sqlite";

absl::StatusOr<std::string> ConninfoOf(const v1::ServerConfig& config) {
  return postgres::MakeConninfo(config.job_store(), config.job_store_password_file());
}

absl::StatusOr<JobStoreSetup> OpenSqlite(const v1::ServerConfig& config, const JobPolicy& policy,
                                         ChangeObserver on_changed) {
  JobStoreSetup setup;
  auto store = OpenSqliteJobStore(
      {.data_dir = config.data_dir(), .policy = policy, .on_changed = std::move(on_changed)});
  if (!store.ok()) return store.status();
  setup.view = store->get();
  setup.store = *std::move(store);
  auto tokens = PageTokens::Open(config.data_dir() + "/page_token.key");
  if (!tokens.ok()) return tokens.status();
  setup.page_tokens = *std::move(tokens);
  return setup;
}

absl::Status OpenPostgres(const v1::ServerConfig& config, const JobPolicy& policy,
                          ChangeObserver on_changed, JobStoreSetup& setup) {
  auto lock = sqlite::DataDirLock::Acquire(config.data_dir());
  if (!lock.ok()) return lock.status();
  setup.data_dir_lock = std::make_unique<sqlite::DataDirLock>(*std::move(lock));
  auto conninfo = ConninfoOf(config);
  if (!conninfo.ok()) return conninfo.status();
  auto store = OpenPostgresJobStore({.conninfo = *conninfo,
                                     .policy = policy,
                                     .connections = config.job_store_connections(),
                                     .on_changed = std::move(on_changed)});
  if (!store.ok()) return store.status();
  setup.view = store->get();
  setup.store = *std::move(store);
  auto fresh = PageTokens::NewKey();
  if (!fresh.ok()) return fresh.status();
  auto key = postgres::SharedSecret(*conninfo, "page_token", *fresh);
  if (!key.ok()) return key.status();
  setup.page_tokens.emplace(*std::move(key));
  return absl::OkStatus();
}

absl::Status JoinPeers(const v1::ServerConfig& config, FollowingClock* clock, WakeupHub* hub,
                       JobStoreSetup& setup) {
  auto conninfo = ConninfoOf(config);
  if (!conninfo.ok()) return conninfo.status();
  auto peers = postgres::Peers::Join({.conninfo = *std::move(conninfo),
                                      .clock = clock,
                                      .on_wakeup = [hub](const JobKey* job) { hub->Receive(job); },
                                      .on_missed = [hub] { hub->WakeAll(); }});
  if (!peers.ok()) return peers.status();
  setup.peers = *std::move(peers);
  hub->RelayTo([p = setup.peers.get()](const JobKey* job) { p->Tell(job); });
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckJobStore(const v1::ServerConfig& config) {
  if (config.job_store() == kSqlite) return absl::OkStatus();
  return ConninfoOf(config).status();
}

absl::StatusOr<JobStoreSetup> OpenJobStore(const v1::ServerConfig& config, const JobPolicy& policy,
                                           FollowingClock* clock, WakeupHub* hub,
                                           ChangeObserver on_changed) {
  if (config.job_store() == kSqlite) {
    // From here on a step of this machine's clock does not touch leases.
    clock->Follow(SystemClock().Now(), clock->Monotonic());
    return OpenSqlite(config, policy, std::move(on_changed));
  }
  JobStoreSetup setup;
  if (auto status = OpenPostgres(config, policy, std::move(on_changed), setup); !status.ok()) {
    return status;
  }
  if (auto status = JoinPeers(config, clock, hub, setup); !status.ok()) return status;
  return setup;
}

std::string EmbeddedWorkerId(const v1::ServerConfig& config) {
  if (config.job_store() == kSqlite) return "embedded";
  std::string host(256, '\0');
  gethostname(host.data(), host.size() - 1);
  return absl::StrCat("embedded-", host.c_str(), "-", Sha256Hex(config.data_dir()).substr(0, 8));
}

}  // namespace quantry::server
