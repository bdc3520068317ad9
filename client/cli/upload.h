#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/connection.h"
#include "client/cli/model_files.h"
#include "client/cli/status_line.h"
#include "quantry/v1/job.pb.h"

namespace quantry::cli {

// Puts local files on the server by content hash: hashes them, asks which the
// server lacks, sends those from where an earlier try stopped. Uploading the
// same files again sends nothing.
class Uploader {
 public:
  // `connection` and `line` outlive the uploader. `parent` is "tenants/{t}".
  Uploader(Connection& connection, StatusLine& line, std::string parent)
      : connection_(connection), line_(line), parent_(std::move(parent)) {}

  // One BlobFile a file, in order, all of them on the server on return.
  // Errors: INVALID_ARGUMENT (a file cannot be read or changed meanwhile),
  // UNAVAILABLE, RESOURCE_EXHAUSTED.
  absl::StatusOr<std::vector<v1::BlobFile>> Upload(const std::vector<LocalFile>& files);

 private:
  absl::StatusOr<std::vector<v1::BlobFile>> Hash(const std::vector<LocalFile>& files);
  absl::StatusOr<std::vector<v1::FindMissingBlobsResponse::Missing>> Missing(
      const std::vector<v1::BlobFile>& blobs);
  // Sends one blob, however often the connection breaks on the way.
  absl::Status Send(const LocalFile& file, const v1::BlobFile& blob, int64_t offset,
                    TransferMeter& meter);
  absl::Status SendOnce(const LocalFile& file, const v1::BlobFile& blob, int64_t offset,
                        TransferMeter& meter);

  Connection& connection_;
  StatusLine& line_;
  const std::string parent_;
};

}  // namespace quantry::cli
