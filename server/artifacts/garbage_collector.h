#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/storage.h"
#include "server/artifacts/artifact_store.h"
#include "server/artifacts/blob_store.h"
#include "server/artifacts/garbage.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

// Runs CollectGarbage over a server's stores: when asked, and by itself every
// `interval`. Servers that share an artifact root take turns: an object below it,
// quantry-garbage, says when one of them began last, so it is also remembered
// over restarts. A root whose files are another job store's is left alone
// (ClaimRoot). Thread-safe; what it is given outlives it.
class GarbageCollector {
 public:
  // Sees the end of each collection that was not asked for.
  using OnCollected = std::function<void(const absl::StatusOr<GarbageReport>&)>;

  // `store_id` names the job store; "" claims no root and collects in any.
  GarbageCollector(JobStore* jobs, const ArtifactStore* artifacts, const BlobStore* blobs,
                   const Clock* clock, std::string store_id = "")
      : jobs_(jobs),
        artifacts_(artifacts),
        blobs_(blobs),
        clock_(clock),
        store_id_(std::move(store_id)) {}

  // Makes both roots this job store's unless they are another's (ClaimRoot).
  absl::Status Claim();

  // RESOURCE_EXHAUSTED RESOURCE_LIMIT while another one runs in this process;
  // INVALID_ARGUMENT INVALID_CONFIG when a root is another job store's; CANCELLED
  // when stopped: what is left goes with the next one.
  absl::StatusOr<GarbageReport> Collect(const GarbageOptions& options, std::stop_token stop = {});

  // One look: collects when no server began to within `interval`; nullopt when it
  // is not due. One that fails is due again at the next look. Unfinished uploads
  // in this server's own spool go at each look.
  absl::StatusOr<std::optional<GarbageReport>> CollectIfDue(Duration interval,
                                                            std::stop_token stop = {});

  // Looks until stopped, several times an interval at uneven times.
  void Run(Duration interval, const OnCollected& on_collected, std::stop_token stop);

 private:
  struct Roots {
    std::unique_ptr<Storage> artifacts, blobs;
  };

  // Both, claimed unless `dry_run` or without a store id; a root of another job
  // store's is an error even then.
  absl::StatusOr<Roots> ClaimedRoots(bool dry_run) const;
  // Of this process, one collection at a time.
  absl::StatusOr<std::unique_lock<std::mutex>> TakeTurn();
  // In its turn, in roots that are claimed.
  absl::StatusOr<GarbageReport> CollectIn(const Roots& roots, const GarbageOptions& options,
                                          std::stop_token stop);
  absl::StatusOr<bool> IsDue(Duration interval) const;
  absl::Status CleanSpool();

  JobStore* const jobs_;
  const ArtifactStore* const artifacts_;
  const BlobStore* const blobs_;
  const Clock* const clock_;
  const std::string store_id_;
  std::mutex collecting_;
};

}  // namespace quantry::server
