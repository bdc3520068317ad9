// Whether the sources a job names exist and may be read; and their place in
// the local file system for a quote. Blocks on the disk. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quantry/v1/engine.pb.h"
#include "quantry/v1/job.pb.h"
#include "server/artifacts/blob_store.h"
#include "server/auth/tenant_sources.h"

namespace quantry::server {

// Whether a job names uploads: checking them asks where uploads are kept.
bool HasUploads(const v1::JobSpec& spec);

class Sources {
 public:
  // How much of uploads in an object store one quote may copy.
  static constexpr std::int64_t kMostPlacedBytes = std::int64_t{512} << 20;

  // Both outlive the object. `scratch_dir` is for materialised blobs.
  Sources(const TenantSources* allowed, BlobStore* blobs, std::string scratch_dir,
          std::int64_t most_placed_bytes = kMostPlacedBytes)
      : allowed_(allowed),
        blobs_(blobs),
        scratch_dir_(std::move(scratch_dir)),
        most_placed_bytes_(most_placed_bytes) {}

  // Where local paths of the tenant's jobs may lie.
  const std::vector<std::string>& RootsOf(const std::string& tenant) const {
    return allowed_->RootsOf(tenant).paths();
  }

  // PERMISSION_DENIED SOURCE_FORBIDDEN for local paths (and file: URIs)
  // outside the tenant's roots and for other URIs it may not read;
  // FAILED_PRECONDITION SOURCE_MISSING with all blobs the
  // server lacks, or the local path that does not exist. Whether other URIs exist
  // the worker finds out.
  absl::Status Check(const std::string& tenant, const v1::JobSpec& spec,
                     const Awaited& awaited) const;

  // A job for `quantry-engine quote`; what that reads of uploaded blobs is placed in
  // a folder that lives as long as the result: of weights their headers, of large texts
  // only their size. UNIMPLEMENTED for object URIs, and for uploads of which it would copy more
  // than it may.
  class LocalJob {
   public:
    explicit LocalJob(std::string folder) : folder_(std::move(folder)) {}
    ~LocalJob();
    LocalJob(const LocalJob&) = delete;
    LocalJob& operator=(const LocalJob&) = delete;
    // An engine's words about the job, with the client's names for what was placed
    // in the folder.
    std::string WithGivenNames(const std::string& words) const;
    absl::Status WithGivenNames(const absl::Status& status) const;  // and its metadata

    v1::EngineJob job;
    std::vector<std::string> folders;                        // its inputs lie in them
    std::vector<std::pair<std::string, std::string>> names;  // path in the folder, client's name

   private:
    std::string folder_;
  };
  absl::StatusOr<std::unique_ptr<LocalJob>> Materialise(const std::string& tenant,
                                                        const v1::JobSpec& spec,
                                                        const Awaited& awaited) const;

 private:
  const TenantSources* allowed_;
  BlobStore* blobs_;
  std::string scratch_dir_;
  std::int64_t most_placed_bytes_;
};

}  // namespace quantry::server
