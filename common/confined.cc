#include "common/confined.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/beneath_walk.h"
#include "common/utf8_prefix.h"

namespace quantry {
namespace {

// More entries than this is no checkpoint folder.
constexpr int kMaxFolderEntries = 10000;

bool HasParentPart(std::string_view path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (path.substr(begin, end - begin) == "..") return true;
    begin = end + 1;
  }
  return false;
}

bool IsCleanName(std::string_view name) {
  return !name.empty() && name.size() < PATH_MAX &&
         name.find_first_of(std::string_view("\\\0", 2)) == std::string_view::npos &&
         !HasParentPart(name);
}

absl::Status OpenError(std::string_view name, int error) {
  const std::string what = absl::StrCat("'", std::string(name), "'");
  switch (error) {
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG:
      return absl::NotFoundError(absl::StrCat("there is no ", what));
    case EXDEV:
    case ELOOP:
      return absl::PermissionDeniedError(
          absl::StrCat(what, " leaves its folder through a symbolic link"));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(absl::StrCat(what, ": ", std::strerror(error)));
    default:  // a disk or network file system that is ill, no descriptors left
      return absl::UnavailableError(absl::StrCat("cannot open ", what, ": ", std::strerror(error)));
  }
}

// The open descriptor, or the negated errno.
int OpenAt2(int folder_fd, const std::string& name, int flags, Symlinks symlinks, unsigned mode) {
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC);
  how.mode = (flags & O_CREAT) != 0 ? mode : 0;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  if (symlinks == Symlinks::kRefuse) how.resolve |= RESOLVE_NO_SYMLINKS;
  long fd = -1;
  do {
    fd = syscall(SYS_openat2, folder_fd, name.c_str(), &how, sizeof how);
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  return fd < 0 ? -errno : static_cast<int>(fd);
}

struct DirCloser {
  void operator()(DIR* dir) const { closedir(dir); }
};

bool IsFileOrFolder(const UniqueFd& fd) {
  struct stat info {};
  return fstat(fd.get(), &info) == 0 && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode));
}

absl::Status SpecialFile(const std::string& name) {
  return absl::PermissionDeniedError(absl::StrCat("'", name, "' is neither a file nor a folder"));
}

// One entry of a folder: a file or folder below the root, links followed.
absl::Status CheckEntry(int root_fd, const std::string& folder, const dirent& entry) {
  const std::string_view name = entry.d_name;
  if (name == "." || name == ".." || entry.d_type == DT_REG || entry.d_type == DT_DIR) {
    return absl::OkStatus();
  }
  const std::string path = absl::StrCat(folder, "/", entry.d_name);
  if (entry.d_type != DT_LNK && entry.d_type != DT_UNKNOWN) return SpecialFile(path);
  const auto opened = OpenBeneath(root_fd, path, O_PATH, Symlinks::kFollowBeneath);
  // A dangling link harms nobody; the engine names the missing file.
  if (absl::IsNotFound(opened.status())) return absl::OkStatus();
  if (!opened.ok()) return opened.status();
  return IsFileOrFolder(*opened) ? absl::OkStatus() : SpecialFile(path);
}

absl::Status CheckEntries(int root_fd, const std::string& relative) {
  auto folder = OpenBeneath(root_fd, relative, O_RDONLY | O_DIRECTORY, Symlinks::kFollowBeneath);
  if (!folder.ok()) return folder.status();
  std::unique_ptr<DIR, DirCloser> dir(fdopendir(dup(folder->get())));
  if (dir == nullptr) return OpenError(relative, errno);
  for (int count = 0; const dirent* entry = readdir(dir.get()); ++count) {
    if (count > kMaxFolderEntries) {
      return absl::PermissionDeniedError(
          absl::StrCat("'", relative, "' holds more than ", kMaxFolderEntries, " entries"));
    }
    if (auto status = CheckEntry(root_fd, relative, *entry); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::string WithoutSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

absl::StatusOr<std::string> PathOfOpen(const UniqueFd& fd) {
  std::array<char, PATH_MAX> target;
  const std::string link = absl::StrCat("/proc/self/fd/", fd.get());
  const ssize_t size = readlink(link.c_str(), target.data(), target.size());
  if (size < 0) return absl::InternalError(absl::StrCat("readlink ", link, ": ", strerror(errno)));
  return std::string(target.data(), static_cast<size_t>(size));
}

std::string RelativeToRoot(std::string_view root, std::string_view path) {
  if (path == root) return ".";
  if (root == "/") return std::string(path.substr(1));
  if (path.size() <= root.size() || path.substr(0, root.size()) != root ||
      path[root.size()] != '/') {
    return "";
  }
  const size_t begin = path.find_first_not_of('/', root.size());
  return begin == std::string_view::npos ? "." : std::string(path.substr(begin));
}

absl::StatusOr<UniqueFd> OpenBeneath(int folder_fd, std::string_view relative, int flags,
                                     Symlinks symlinks, unsigned mode) {
  if (!IsCleanName(relative) || relative.front() == '/') {
    return absl::InvalidArgumentError(absl::StrCat(
        "wanted a relative path without '..', '\\' or NUL, got '", Utf8Prefix(relative, 200), "'"));
  }
  int fd = OpenAt2(folder_fd, std::string(relative), flags, symlinks, mode);
  // No such call: an old kernel says ENOSYS, an old container EPERM.
  if (fd == -ENOSYS || fd == -EPERM) {
    fd = WalkBeneath(folder_fd, relative, flags, symlinks == Symlinks::kFollowBeneath, mode);
  }
  if (fd < 0) return OpenError(relative, -fd);
  return UniqueFd(fd);
}

absl::StatusOr<UniqueFd> OpenFolder(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok()) {
    const int error = errno;
    const bool ill = absl::IsUnavailable(OpenError(path, error));
    return absl::Status(
        ill ? absl::StatusCode::kUnavailable : absl::StatusCode::kFailedPrecondition,
        absl::StrCat("wanted a readable folder at '", path, "': ", std::strerror(error)));
  }
  return fd;
}

absl::Status LocalRoots::Add(const std::string& configured) {
  const std::string root = WithoutSlashes(configured);
  if (root.empty() || root.front() != '/') {
    return absl::FailedPreconditionError(
        absl::StrCat("local root: wanted an absolute folder, got '", configured, "'"));
  }
  auto fd = OpenFolder(root);
  if (!fd.ok()) return fd.status();
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(root.c_str(), nullptr),
                                                         &std::free);
  paths_.push_back(root);
  // Both spellings are accepted: as configured and resolved.
  if (real != nullptr && root != real.get()) {
    roots_.push_back({real.get(), UniqueFd(fcntl(fd->get(), F_DUPFD_CLOEXEC, 0))});
  }
  roots_.push_back({root, *std::move(fd)});
  return absl::OkStatus();
}

absl::StatusOr<LocalRoots> LocalRoots::Open(const std::vector<std::string>& roots) {
  LocalRoots result;
  for (const std::string& root : roots) {
    if (absl::Status status = result.Add(root); !status.ok()) return status;
  }
  return result;
}

LocalRoots LocalRoots::OpenThoseHere(const std::vector<std::string>& roots) {
  LocalRoots result;
  for (const std::string& root : roots) {
    const absl::Status status = result.Add(root);
    if (absl::IsUnavailable(status)) result.ill_.emplace_back(WithoutSlashes(root), status);
  }
  return result;
}

absl::StatusOr<std::string> LocalRoots::Resolve(std::string_view path) const {
  if (!IsCleanName(path) || path.front() != '/') {
    return absl::PermissionDeniedError(absl::StrCat(
        "wanted an absolute path without '..', '\\' or NUL, got '", Utf8Prefix(path, 200), "'"));
  }
  const std::string clean = WithoutSlashes(std::string(path));
  for (const Root& root : roots_) {
    const std::string relative = RelativeToRoot(root.path, clean);
    if (relative.empty()) continue;
    const auto opened = OpenBeneath(root.fd.get(), relative, O_PATH, Symlinks::kFollowBeneath);
    if (!opened.ok()) return opened.status();
    if (!IsFileOrFolder(*opened)) return SpecialFile(clean);
    struct stat info {};
    if (fstat(opened->get(), &info) != 0) return OpenError(relative, errno);
    if (S_ISDIR(info.st_mode)) {
      if (auto status = CheckEntries(root.fd.get(), relative); !status.ok()) return status;
    }
    return PathOfOpen(*opened);
  }
  for (const auto& [root, status] : ill_) {
    if (!RelativeToRoot(root, clean).empty()) return status;
  }
  return absl::PermissionDeniedError(
      absl::StrCat("'", clean, "' is not below an allowed root (",
                   paths_.empty() ? "none is configured" : absl::StrJoin(paths_, ", "), ")"));
}

}  // namespace quantry
