// Finds and removes what no job needs: uploads that nothing names, what attempts
// wrote that never became an artifact, and files that were not finished.
#pragma once

#include <cstdint>
#include <stop_token>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/storage.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

struct GarbageOptions {
  // What changed within this time stays: an upload comes before its job, and a
  // worker that lost its lease may still be writing.
  Duration grace = std::chrono::hours(24);
  bool dry_run = false;  // count, remove nothing
};

struct GarbageReport {
  int attempts = 0;  // prefixes of outputs and checkpoints
  int blobs = 0;     // uploads, unfinished ones included
  std::int64_t objects = 0;
  std::int64_t bytes = 0;
  int failures = 0;            // what could not be removed; nothing else waits for it
  absl::Status first_failure;  // of these
};

// The roots as ArtifactStore and BlobStore lay them out; files of any other shape
// are not touched. `spool` may be null.
struct GarbagePlaces {
  Storage& artifacts;
  Storage& blobs;
  Storage* spool = nullptr;
};

// Files are listed before the jobs are read and looked at once more before they
// go, so a job submitted meanwhile keeps its uploads (BlobStore::Find makes them
// new). Removing is idempotent: an error leaves the rest for the next call, and so
// does a stop (CANCELLED).
absl::StatusOr<GarbageReport> CollectGarbage(JobStore& jobs, const GarbagePlaces& places,
                                             const GarbageOptions& options, Time now,
                                             std::stop_token stop = {});

// Uploads of a spool that did not go on for `grace`.
absl::Status RemoveOldUploads(Storage& spool, Duration grace, Time now);

}  // namespace quantry::server
