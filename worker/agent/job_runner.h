#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/checkpoint_uploader.h"
#include "worker/agent/engine_job.h"
#include "worker/agent/engine_runner.h"
#include "worker/agent/job_session.h"
#include "worker/agent/lease_keeper.h"
#include "worker/agent/materializer.h"
#include "worker/agent/patience.h"
#include "worker/agent/work_dir.h"
#include "worker/agent/worker_client.h"
#include "worker/agent/worker_metrics.h"

namespace quantry::agent {

// Runs one attempt at a time from lease to end: fetch, restore, engine, upload,
// commit; then exactly one of CompleteJob, FailJob, ReleaseJob, or nothing when
// the lease was lost. Its parts are shared with the other slots and outlive it.
class JobRunner {
 public:
  struct Parts {
    WorkerClient& client;
    LeaseKeeper& keeper;
    const WorkDir& work_dir;
    const Materializer& materializer;
    const EngineRunner& engine;
    WorkerMetrics& metrics;
    EngineDefaults defaults;
    Patience::Limits patience;
    std::function<void()> free_disk;  // gives up what is only kept to save time
  };

  explicit JobRunner(Parts parts) : parts_(std::move(parts)) {}

  // Blocks until the attempt has ended. `granted`: when the lease was answered.
  void Run(const v1::Lease& lease, MonotonicTime granted);

 private:
  struct Attempt;
  absl::Status Execute(Attempt& attempt);
  absl::Status Prepare(Attempt& attempt, JobInputs* inputs);
  absl::Status Restore(Attempt& attempt);
  absl::Status RunEngine(Attempt& attempt, EngineAccess access, CheckpointUploader& uploader);
  v1::JobBeat LastBeat(Attempt& attempt);
  absl::Status Commit(Attempt& attempt);
  void OnEngineEvent(Attempt& attempt, CheckpointUploader& uploader, const v1::EngineEvent& event);
  void Finish(Attempt& attempt, const absl::Status& status);
  void Fail(Attempt& attempt, const absl::Status& status, bool cancelled);
  void Release(Attempt& attempt);

  Parts parts_;
};

}  // namespace quantry::agent
