#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/storage.h"
#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/blob_cache.h"
#include "worker/agent/hub_source.h"
#include "worker/agent/work_dir.h"

namespace quantry::agent {

// Local paths of a job's inputs; "" = the job has none.
struct JobInputs {
  std::string model_dir;
  std::string calibration;
  std::string evaluation;
  std::string preprocessing;         // its corpus
  std::string note;                  // for the job's owner: which commit was fetched
  std::vector<std::string> folders;  // all of these lie in them
};

// Brings a job's inputs onto this machine and refuses what must not be read:
// paths outside the allowed folders, pickled checkpoints, hostile file names.
// Local folders are used in place, everything else lies below the attempt's
// folder afterwards. Thread-safe.
//
// Errors (common/errors.h): SOURCE_FORBIDDEN, SOURCE_MISSING,
// CHECKPOINT_FORMAT_REFUSED, INVALID_SPEC, ARTIFACT_CORRUPT, DISK_FULL,
// STORAGE_ERROR; CANCELLED when `check` says so.
class Materializer {
 public:
  // `local_roots` come beside those of the lease. Without a hub hf:// sources
  // are refused; it outlives the object.
  Materializer(BlobCache& cache, std::vector<std::string> local_roots,
               const HubSource* hub = nullptr)
      : cache_(cache), local_roots_(std::move(local_roots)), hub_(hub) {}

  absl::StatusOr<JobInputs> Materialize(const v1::Lease& lease, const AttemptDir& dir,
                                        const TransferCheck& check) const;

 private:
  struct Context;
  absl::StatusOr<std::string> Model(const Context& context, std::string* note) const;
  absl::StatusOr<std::string> LocalModel(const Context& context, std::string_view path) const;
  absl::StatusOr<std::string> RemoteModel(const Context& context, const std::string& uri) const;
  absl::StatusOr<std::string> HubModel(const Context& context, const std::string& uri,
                                       std::string* note) const;
  absl::Status HubFiles(const Context& context, const HubListing& listing) const;
  absl::StatusOr<std::string> BlobModel(const Context& context, const v1::BlobSet& blobs) const;
  absl::StatusOr<std::string> Text(const Context& context, const v1::TextSource& source,
                                   const std::string& target) const;
  std::vector<std::string> Roots(const v1::Lease& lease) const;

  BlobCache& cache_;
  const std::vector<std::string> local_roots_;
  const HubSource* const hub_;
};

// The files of a repository that quantization needs: of safetensors those that
// `index` (model.safetensors.index.json; "" = there is none) names, else
// model.safetensors, else all. SOURCE_MISSING when a shard is not listed.
absl::StatusOr<std::vector<HubFile>> WantedHubFiles(const HubListing& listing,
                                                    const std::string& index);

// What a file of a model folder is to quantization.
enum class ModelFile { kWanted, kIgnored, kPickle };
ModelFile ClassifyModelFile(std::string_view path);

}  // namespace quantry::agent
