// Whether the sources a job names exist and may be read; and their place in
// the local file system for a quote. Blocks on the disk. Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/confined.h"
#include "quantry/v1/engine.pb.h"
#include "quantry/v1/job.pb.h"
#include "server/artifacts/blob_store.h"

namespace quantry::server {

class Sources {
 public:
  // Both outlive the object. `scratch_dir` is for materialised blobs.
  Sources(const LocalRoots* roots, BlobStore* blobs, std::string scratch_dir)
      : roots_(roots), blobs_(blobs), scratch_dir_(std::move(scratch_dir)) {}

  // PERMISSION_DENIED SOURCE_FORBIDDEN for local paths (and file: URIs)
  // outside the roots; FAILED_PRECONDITION SOURCE_MISSING with all blobs the
  // server lacks, or the local path that does not exist. Other URIs are the
  // worker's to check.
  absl::Status Check(const std::string& tenant, const v1::JobSpec& spec) const;

  // A job for `quantry-engine quote`; uploaded blobs are linked into a folder
  // that lives as long as the result. UNIMPLEMENTED for object URIs.
  class LocalJob {
   public:
    explicit LocalJob(std::string folder) : folder_(std::move(folder)) {}
    ~LocalJob();
    LocalJob(const LocalJob&) = delete;
    LocalJob& operator=(const LocalJob&) = delete;
    v1::EngineJob job;

   private:
    std::string folder_;
  };
  absl::StatusOr<std::unique_ptr<LocalJob>> Materialise(const std::string& tenant,
                                                        const v1::JobSpec& spec) const;

 private:
  const LocalRoots* roots_;
  BlobStore* blobs_;
  std::string scratch_dir_;
};

}  // namespace quantry::server
