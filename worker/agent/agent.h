#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>
#include <string>

#include "worker/agent/blob_cache.h"
#include "worker/agent/job_runner.h"
#include "worker/agent/lease_keeper.h"
#include "worker/agent/work_dir.h"
#include "worker/agent/worker_client.h"

namespace quantry::agent {

struct AgentOptions {
  int slots = 1;
  bool once = false;                     // end after one job
  std::chrono::seconds max_idle{0};      // end after this long without a job; 0 = never
  std::int64_t min_free_disk_bytes = 0;  // acquire nothing below it
  std::chrono::milliseconds acquire_wait{20000};
  // How long a drain waits for the next checkpoint of running jobs.
  std::chrono::milliseconds drain_grace{20000};
  // How long an attempt waits for a store that does not answer.
  Patience::Limits patience;
};

// Acquires jobs and runs them, one thread a slot, beside one thread that sends
// the heartbeats. Drain and worker directives may come from any thread.
class Agent {
 public:
  // Everything passed in outlives the agent.
  Agent(AgentOptions options, WorkerClient& client, const WorkDir& work_dir, BlobCache& cache,
        const Materializer& materializer, const EngineRunner& engine, WorkerMetrics& metrics,
        EngineDefaults defaults);

  // Registers and works until drained (or --once, --max-idle-s say so); returns
  // when no engine runs any more. An error only when the server refused the
  // registration.
  absl::Status Run();

  // Acquire nothing more, stop at the next checkpoint, give the jobs back.
  // The second call does not wait for checkpoints.
  void Drain();

  // "" when the server is reached and jobs are accepted, else why not.
  std::string NotReady() const;

 private:
  void RunSlot();
  void RunOneJob(const std::string& acquire_id, JobRunner& runner);
  bool MayAcquire();
  // By what is only kept to save time, until `bytes` of the cache have gone.
  void FreeDisk(std::int64_t bytes);
  void OnDirective(v1::WorkerDirective directive);
  void ReturnUnwanted(const std::string& acquire_id);
  void WaitForEnd();
  // Sleeps; false when draining began.
  bool Pause(std::chrono::milliseconds time);

  const AgentOptions options_;
  WorkerClient& client_;
  const WorkDir& work_dir_;
  BlobCache& cache_;
  LeaseKeeper keeper_;
  JobRunner::Parts parts_;

  std::stop_source drain_;              // acquire nothing more
  std::atomic<bool> give_back_{false};  // running jobs are to be released
  std::atomic<bool> registered_{false};
  std::atomic<bool> quiet_{false};
  std::atomic<bool> disk_low_{false};
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  int running_slots_ = 0;
  int busy_ = 0;
  MonotonicTime idle_since_;
};

}  // namespace quantry::agent
