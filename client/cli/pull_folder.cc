#include "client/cli/pull_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "client/cli/errors.h"
#include "client/cli/hold.h"
#include "client/cli/text.h"
#include "common/digest.h"

namespace quantry::cli {
namespace {

absl::Status Unusable(const std::string& folder, int error) {
  return WithNext(absl::FailedPreconditionError(
                      Cat("cannot pull into \"", folder, "\": ", std::strerror(error))),
                  "choose a folder you may write to");
}

absl::Status Held(const std::string& folder) {
  return WithNext(
      absl::FailedPreconditionError(Cat("another pull into \"", folder, "\" is at work")),
      "wait for its end, then run the same pull again: it verifies what is there");
}

// The folder, or what is there of the way to it.
std::filesystem::path NearestThere(const std::string& folder) {
  std::filesystem::path path = folder;
  std::error_code ignored;
  while (!path.empty() && !std::filesystem::exists(path, ignored)) path = path.parent_path();
  if (path.empty()) path = ".";
  return path;
}

}  // namespace

absl::StatusOr<PullFolder> PullFolder::Hold(const std::string& folder) {
  // Each time anew: an export may remove it.
  const auto open_folder = [&folder] {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    errno = error.value();
    return error ? -1 : open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  };
  UniqueFd fd;
  switch (OpenAndHold(folder, open_folder, &fd)) {
    case Holder::kUs:
      return PullFolder(std::move(fd));
    case Holder::kNobody:
      return Unusable(folder, errno);
    case Holder::kOther:
      break;
  }
  return Held(folder);
}

absl::Status PullFolder::Check(const std::string& folder) {
  const std::filesystem::path there = NearestThere(folder);
  std::error_code ignored;
  if (!std::filesystem::is_directory(there, ignored)) return Unusable(folder, ENOTDIR);
  if (access(there.c_str(), W_OK | X_OK) != 0) return Unusable(folder, errno);
  return absl::OkStatus();
}

bool HoldsExactly(const std::string& path, const v1::ArtifactFile& file) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || static_cast<int64_t>(size) != file.size_bytes()) return false;
  const absl::StatusOr<FileDigest> digest = Sha256File(path);
  return digest.ok() && digest->sha256 == file.sha256();
}

absl::Status Replace(const std::string& folder, Replacement coming) {
  const std::string aside = Cat(folder, "/", kFormerManifestName);
  absl::Status status = RenameAndSync(coming.manifest.target(), aside);
  for (PartFile& file : coming.files) {
    if (status.ok()) status = file.Commit();
  }
  if (!status.ok()) return status;
  for (const v1::ArtifactFile& file : coming.former) {
    const std::string path = Cat(folder, "/", file.path());
    std::error_code ignored;
    if (HoldsExactly(path, file)) std::filesystem::remove(path, ignored);
  }
  if (status = RemoveAndSync(aside); !status.ok()) return status;
  return coming.manifest.Commit();
}

}  // namespace quantry::cli
