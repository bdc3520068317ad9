#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/part_file.h"
#include "common/unique_fd.h"
#include "quantry/v1/artifact.pb.h"

namespace quantry::cli {

// The folder a pull fills, for one pull at a time while this object lives: of
// all processes, the Python client's among them. Where the file system cannot
// tell (NFS) part files still have one writer each.
class PullFolder {
 public:
  // Holds nothing.
  PullFolder() = default;
  // Makes missing folders. FAILED_PRECONDITION when another pull holds it or it
  // cannot be used.
  static absl::StatusOr<PullFolder> Hold(const std::string& folder);
  // Whether a pull could make or fill it, as far as a look tells; makes nothing.
  // FAILED_PRECONDITION when not.
  static absl::Status Check(const std::string& folder);

 private:
  explicit PullFolder(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
};

// Whether a file has this size and sha256.
bool HoldsExactly(const std::string& path, const v1::ArtifactFile& file);

// What a manifest is called once its artifact makes room, until its files are gone. The Python
// client reads it too.
inline constexpr char kFormerManifestName[] = "manifest.json.former";

// An artifact that is complete in part files.
struct Replacement {
  std::vector<PartFile> files;
  PartFile manifest;
  // Of the manifest there or one that was making room, those that the new artifact has no file for.
  std::vector<v1::ArtifactFile> former;
};

// Puts an artifact in the place of what lies in `folder`, by renames alone. The
// manifest there is renamed first and the new one comes last; the former files
// go unless somebody changed them. When it breaks off, the folder has no
// manifest and the same pull ends it.
absl::Status Replace(const std::string& folder, Replacement coming);

}  // namespace quantry::cli
