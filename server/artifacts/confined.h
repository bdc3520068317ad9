// Opening files below a folder whatever names and symbolic links say: the
// kernel resolves the path (openat2 with RESOLVE_BENEATH), so nothing can be
// swapped between check and use. Needs Linux 5.6.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace quantry::server {

// Whether symbolic links that stay below the folder are followed.
enum class Symlinks { kFollowBeneath, kRefuse };

// Opens `relative` below `folder_fd` with the open(2) flags given (O_CLOEXEC
// is added). INVALID_ARGUMENT for a name that is absolute, empty, or has "..",
// "\\" or NUL; PERMISSION_DENIED when it leaves the folder; NOT_FOUND;
// otherwise INTERNAL with the system's message.
absl::StatusOr<UniqueFd> OpenBeneath(int folder_fd, std::string_view relative, int flags,
                                     Symlinks symlinks, unsigned mode = 0);

// Opens a folder by its path, following links: for folders the operator named.
absl::StatusOr<UniqueFd> OpenFolder(const std::string& path);

// The folders local_path sources may lie below. Immutable, thread-safe.
class LocalRoots {
 public:
  // FAILED_PRECONDITION when a root is not absolute or not a folder.
  static absl::StatusOr<LocalRoots> Open(const std::vector<std::string>& roots);

  // OK when `path` is absolute, lies below a root and neither it nor, for a
  // folder, any entry directly in it leaves the root through a symbolic link.
  // PERMISSION_DENIED otherwise (the message names the roots); NOT_FOUND when
  // it lies below a root but does not exist.
  absl::Status Check(std::string_view path) const;

  const std::vector<std::string>& paths() const { return paths_; }

 private:
  struct Root {
    std::string path;  // no slash at the end
    UniqueFd fd;
  };
  std::vector<std::string> paths_;  // as configured
  std::vector<Root> roots_;         // as configured and as resolved
};

}  // namespace quantry::server
