#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/connection.h"
#include "client/cli/part_file.h"
#include "client/cli/status_line.h"
#include "quantry/v1/artifact.pb.h"

namespace quantry::cli {

struct PullOptions {
  std::string folder;
  std::string format = "";  // only this output's files; "" = all
  std::string path = "";    // only this file or folder of the artifact; "" = all
  bool force = false;       // overwrite files that are not the artifact's
};

struct PullSummary {
  int files = 0;       // in the folder now, verified
  int downloaded = 0;  // of them, fetched by this call
  int64_t bytes = 0;
  int64_t downloaded_bytes = 0;
  double seconds = 0;
  v1::Manifest manifest;
};

// The files a pull wants, in manifest order. INVALID_ARGUMENT when format or
// path match nothing (says what there is), DATA_LOSS when any name of the
// manifest could leave the folder or an entry makes no sense.
absl::StatusOr<std::vector<v1::ArtifactFile>> ChooseFiles(const v1::Manifest& manifest,
                                                          const PullOptions& options);

// Copies an artifact into a folder and proves it: the manifest by the server's
// digest of it, every file by the manifest's. manifest.json is written last, so
// a folder that has it is complete. Running it again verifies what is there and
// fetches the rest; files are replaced whole or not at all.
class Puller {
 public:
  Puller(Connection& connection, StatusLine& line) : connection_(connection), line_(line) {}

  // Errors: DATA_LOSS ARTIFACT_CORRUPT when bytes stay wrong after a second
  // try, FAILED_PRECONDITION when the folder holds something else, NOT_FOUND,
  // UNAVAILABLE.
  absl::StatusOr<PullSummary> Pull(const v1::Artifact& artifact, const PullOptions& options);

 private:
  absl::Status PullFile(const v1::Artifact& artifact, const v1::ArtifactFile& file,
                        const PullOptions& options, bool ours, TransferMeter& meter,
                        PullSummary& summary);
  absl::Status Download(const std::string& artifact, const v1::ArtifactFile& file,
                        const std::string& target, TransferMeter& meter);
  // Fills `part` up to the file's size, over broken connections.
  absl::Status Fill(const std::string& artifact, const v1::ArtifactFile& file, PartFile& part,
                    TransferMeter& meter);
  // One stream from part.size(); DATA_LOSS for a chunk that is not what it says.
  absl::Status FillOnce(const std::string& artifact, const v1::ArtifactFile& file, PartFile& part,
                        TransferMeter& meter);

  Connection& connection_;
  StatusLine& line_;
};

}  // namespace quantry::cli
