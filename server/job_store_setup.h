// Opens the job store that the configuration names, with everything that goes
// with it when several servers share one.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "quantry/v1/config.pb.h"
#include "server/jobs/job_store.h"
#include "server/jobs/operator_view.h"
#include "server/jobs/policy.h"
#include "server/jobs/postgres/peers.h"
#include "server/jobs/sqlite/data_dir_lock.h"
#include "server/rpc/page_token.h"
#include "server/scheduling/wakeup_hub.h"

namespace quantry::server {

struct JobStoreSetup {
  std::unique_ptr<JobStore> store;
  OperatorView* view = nullptr;  // of the store, and lives as long
  // With PostgreSQL: the data folder is this server's alone, the database is not.
  std::unique_ptr<sqlite::DataDirLock> data_dir_lock;
  std::unique_ptr<postgres::Peers> peers;
  std::optional<PageTokens> page_tokens;  // any server reads any server's

  bool shared() const { return peers != nullptr; }
};

// INVALID_ARGUMENT INVALID_CONFIG when --job-store or its password file is
// wrong. Connects to nothing.
absl::Status CheckJobStore(const v1::ServerConfig& config);

// `clock` follows the database's from now on when it is shared, and `hub`
// relays; both outlive the result.
absl::StatusOr<JobStoreSetup> OpenJobStore(const v1::ServerConfig& config, const JobPolicy& policy,
                                           FollowingClock* clock, WakeupHub* hub,
                                           ChangeObserver on_changed);

// The embedded worker's id: servers of one store need different ones.
std::string EmbeddedWorkerId(const v1::ServerConfig& config);

}  // namespace quantry::server
