#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/connection.h"
#include "client/cli/part_file.h"
#include "client/cli/pull_folder.h"
#include "client/cli/status_line.h"
#include "quantry/v1/artifact.pb.h"

namespace quantry::cli {

struct PullOptions {
  std::string folder;
  std::string format = "";  // only this output's files; "" = all
  std::string path = "";    // only this file or folder of the artifact; "" = all
  bool force = false;       // replace files that are not the artifact's
  // What a user does to have them replaced, for the error's hint.
  std::string forced = "add --force";
};

struct PullSummary {
  int files = 0;       // in the folder now, verified
  int downloaded = 0;  // of them, fetched by this call
  int64_t bytes = 0;
  int64_t downloaded_bytes = 0;
  double seconds = 0;
  v1::Manifest manifest;
  PullFolder held = {};  // no other pull comes in while the summary lives
};

// The files a pull wants, in manifest order. INVALID_ARGUMENT when format or
// path match nothing (says what there is), DATA_LOSS when any name of the
// manifest could leave the folder or an entry makes no sense.
absl::StatusOr<std::vector<v1::ArtifactFile>> ChooseFiles(const v1::Manifest& manifest,
                                                          const PullOptions& options);

// The outputs that such a pull brings whole.
std::vector<v1::OutputSummary> ChooseOutputs(const v1::Manifest& manifest,
                                             const PullOptions& options);

// Copies an artifact into a folder and proves it: the manifest by the server's
// digest of it, every file by the manifest's. manifest.json is written last, so
// a folder that has it is complete. Running it again verifies what is there and
// fetches the rest; files are replaced whole or not at all. A forced pull changes
// nothing before all has arrived, so it needs room for both.
class Puller {
 public:
  Puller(Connection& connection, StatusLine& line) : connection_(connection), line_(line) {}

  // Errors: DATA_LOSS ARTIFACT_CORRUPT when bytes stay wrong after a second
  // try, FAILED_PRECONDITION when the folder holds something else or another
  // pull fills it, NOT_FOUND, UNAVAILABLE.
  absl::StatusOr<PullSummary> Pull(const v1::Artifact& artifact, const PullOptions& options);

 private:
  // One pull, from its first file on.
  struct Work;

  absl::Status PullFile(const v1::ArtifactFile& file, Work& work);
  // The file's bytes, complete, correct and on the disk, beside `target`.
  absl::StatusOr<PartFile> Download(const v1::ArtifactFile& file, const std::string& target,
                                    Work& work);
  // The last step: the manifest, and in a forced pull all that has gathered.
  absl::Status PutManifest(const std::string& target, const std::string& bytes, Work& work);
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
