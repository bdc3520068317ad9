// What the services share. Everything pointed at outlives them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/clock.h"
#include "server/artifacts/artifact_store.h"
#include "server/artifacts/blob_store.h"
#include "server/artifacts/deleted_jobs.h"
#include "server/artifacts/garbage_collector.h"
#include "server/jobs/job_store.h"
#include "server/rpc/call.h"
#include "server/rpc/engine_tool.h"
#include "server/rpc/page_token.h"
#include "server/rpc/sources.h"
#include "server/rpc/validation.h"
#include "server/scheduling/wakeup_hub.h"

namespace quantry::server {

struct ServiceContext {
  RpcRuntime* runtime = nullptr;
  JobStore* store = nullptr;
  BlobStore* blobs = nullptr;
  ArtifactStore* artifacts = nullptr;
  GarbageCollector* garbage = nullptr;
  DeletedJobs* deleted_jobs = nullptr;
  WakeupHub* hub = nullptr;
  EngineTool* engine = nullptr;
  const CapabilitiesCache* capabilities = nullptr;
  const PageTokens* page_tokens = nullptr;
  const Sources* sources = nullptr;
  const Clock* clock = nullptr;

  SpecLimits limits;
  std::vector<std::string> local_roots;
  bool embedded = true;
  bool hub_sources = true;  // false: no worker of this server fetches hf://
  Time start_time;
  Duration lease_ttl{};
  Duration heartbeat_interval{};
  // A watch that is told nothing looks for itself this often.
  Duration watch_poll = std::chrono::seconds(10);
  // How long a connection of either port lives.
  Duration connection_age = std::chrono::minutes(30);
  // What the calls of each port may hold.
  std::int64_t call_memory_bytes = 256 << 20;
};

// Full names of every method of the four services, for metrics and tests.
std::vector<std::string> AllMethodNames();
// Short names of those that answer UNIMPLEMENTED.
const std::vector<std::string>& UnimplementedMethods();

}  // namespace quantry::server
