// Starts quantry-engine the way everybody must: with an environment that holds
// no credentials, and confined to its job's files (docs/operations/confinement.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/process.h"
#include "common/sandbox/identity.h"
#include "quantry/v1/engine.pb.h"

namespace quantry {

// From the configuration; for all engines of a process.
struct EngineConfinement {
  bool enabled = true;
  std::optional<Identity> account;   // nullopt = this process's own
  std::uint64_t max_file_bytes = 0;  // 0 = no limit
};

// What one engine needs.
struct EngineAccess {
  std::vector<std::string> read;  // files and folders
  // Folders that hold what may be read, links followed; empty = anywhere.
  std::vector<std::string> within;
  std::vector<std::string> write;  // folders that exist
  bool gpu = false;
};

// The inputs of a job, which lie in `within`, and its device; no folder to write to.
EngineAccess InputsOf(const v1::EngineJob& job, std::vector<std::string> within);

// INVALID_CONFIG for an account that does not exist, or that only root could
// switch to. `user` "" = no account, and root says the same where root starts them.
absl::StatusOr<EngineConfinement> MakeEngineConfinement(bool enabled, const std::string& user,
                                                        std::int64_t max_file_bytes);

// INVALID_CONFIG when the engines' account cannot reach `folder`.
absl::Status CheckEngineReaches(const EngineConfinement& confinement, const std::string& folder);

// argv[0] of `options` is the engine; its environment and sandbox are set here.
// Errors as ChildProcess::Spawn and Sandbox::Prepare.
absl::StatusOr<ChildProcess> SpawnEngine(ChildOptions options, const EngineConfinement& confinement,
                                         const EngineAccess& access);

// For a log line: "off", or what held in `child`.
std::string DescribeConfinement(const EngineConfinement& confinement, const ChildProcess& child);

}  // namespace quantry
