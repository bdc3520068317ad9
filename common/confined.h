// Opening files below a folder whatever names and symbolic links say: the
// kernel resolves the path (openat2 with RESOLVE_BENEATH), so nothing can be
// swapped between check and use. Where it has no such call (before Linux 5.6, or
// behind a seccomp filter that hides it) the path is walked by hand, part by
// part, with the same results (beneath_walk.h). LocalRoots::Resolve only checks:
// what of a path an engine may open is decided when it starts (Sandbox::Prepare).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace quantry {

// Whether symbolic links that stay below the folder are followed.
enum class Symlinks { kFollowBeneath, kRefuse };

// Opens `relative` below `folder_fd` with the open(2) flags given (O_CLOEXEC
// is added). INVALID_ARGUMENT for a name that is absolute, empty, or has "..",
// "\\" or NUL; PERMISSION_DENIED when it leaves the folder; NOT_FOUND;
// otherwise UNAVAILABLE with the system's message: the disk is ill.
absl::StatusOr<UniqueFd> OpenBeneath(int folder_fd, std::string_view relative, int flags,
                                     Symlinks symlinks, unsigned mode = 0);

// Opens a folder by its path, following links: for folders the operator named.
// FAILED_PRECONDITION where there is none to read, UNAVAILABLE where the disk is ill.
absl::StatusOr<UniqueFd> OpenFolder(const std::string& path);

// Where an open file or folder lies, every link on its way resolved.
absl::StatusOr<std::string> PathOfOpen(const UniqueFd& fd);

// The part of `path` below `root`; "." for the root itself, "" when outside.
std::string RelativeToRoot(std::string_view root, std::string_view path);

// The folders local_path sources may lie below. Immutable, thread-safe.
class LocalRoots {
 public:
  // FAILED_PRECONDITION when a root is not absolute, else as OpenFolder.
  static absl::StatusOr<LocalRoots> Open(const std::vector<std::string>& roots);
  // Those of `roots` that are folders of this machine. What lies below one that is ill is
  // UNAVAILABLE.
  static LocalRoots OpenThoseHere(const std::vector<std::string>& roots);

  // The path, every symbolic link on its way resolved by the kernel, of a file
  // or folder that lies below a root. A folder's direct entries are checked
  // too, so that no file in it is read from elsewhere through a link and no
  // device or pipe is waited for.
  //
  // PERMISSION_DENIED: not absolute, has "..", "\\" or NUL, outside, leaves the
  // root through a link, special file, cannot be read. NOT_FOUND: lies below a
  // root but does not exist. UNAVAILABLE: the disk is ill. The message names
  // path and roots.
  absl::StatusOr<std::string> Resolve(std::string_view path) const;

  const std::vector<std::string>& paths() const { return paths_; }

 private:
  absl::Status Add(const std::string& configured);

  struct Root {
    std::string path;  // no slash at the end
    UniqueFd fd;
  };
  std::vector<std::string> paths_;  // as configured
  std::vector<Root> roots_;         // as configured and as resolved
  std::vector<std::pair<std::string, absl::Status>> ill_;
};

}  // namespace quantry
