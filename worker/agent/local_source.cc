#include "worker/agent/local_source.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <map>

#include "common/errors.h"
#include "common/unique_fd.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;

// More entries than this is no model folder.
constexpr int kMaxEntries = 10000;

int OpenBeneath(int root, const std::string& relative) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  int fd = -1;
  do {
    fd = static_cast<int>(syscall(SYS_openat2, root, relative.c_str(), &how, sizeof how));
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  return fd;
}

absl::Status Forbidden(const std::string& path, const std::vector<std::string>& roots,
                       const std::string& why) {
  std::string names;
  for (const std::string& root : roots) names += (names.empty() ? "" : ", ") + root;
  if (names.empty()) names = "none";
  return MakeError(Reason::kSourceForbidden,
                   path + " " + why + "; allowed folders on this worker: " + names +
                       ". Move it below one of them, or upload it",
                   {{"path", path}, {"local_roots", names}});
}

absl::StatusOr<UniqueFd> Open(int root, const std::string& relative, const std::string& path,
                              const std::vector<std::string>& roots) {
  UniqueFd fd(OpenBeneath(root, relative));
  if (fd.ok()) return fd;
  if (errno == EXDEV || errno == ELOOP) {
    return Forbidden(path, roots, "leaves the allowed folder through a symbolic link");
  }
  if (errno == EACCES) return Forbidden(path, roots, "cannot be read by the worker");
  return MakeError(Reason::kSourceMissing,
                   path + ": " + std::strerror(errno) + "; check the path on the worker's machine",
                   {{"path", path}});
}

absl::StatusOr<std::string> PathOf(const UniqueFd& fd) {
  std::array<char, PATH_MAX> target;
  const std::string link = "/proc/self/fd/" + std::to_string(fd.get());
  const ssize_t n = readlink(link.c_str(), target.data(), target.size());
  if (n < 0) return absl::InternalError("readlink " + link + ": " + std::strerror(errno));
  return std::string(target.data(), static_cast<std::size_t>(n));
}

absl::Status CheckEntries(int root, const std::string& relative, const std::string& path,
                          const std::vector<std::string>& roots) {
  std::error_code error;
  int count = 0;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (++count > kMaxEntries) return Forbidden(path, roots, "holds more than 10000 entries");
    const std::string name = it->path().filename().native();
    std::error_code ignored;
    if (!it->is_symlink(ignored)) {
      if (it->is_regular_file(ignored) || it->is_directory(ignored)) continue;
      return Forbidden(it->path().native(), roots, "is neither a file nor a folder");
    }
    auto fd = Open(root, relative + "/" + name, it->path().native(), roots);
    // A dangling link harms nobody; the engine names the missing file.
    if (!fd.ok() && !HasReason(fd.status(), Reason::kSourceMissing)) return fd.status();
  }
  if (error) return Forbidden(path, roots, "cannot be listed by the worker");
  return absl::OkStatus();
}

// `path` relative to `root`, both cleaned; "" when it is not below.
std::string RelativeTo(const fs::path& root, const fs::path& path) {
  const fs::path relative = path.lexically_relative(root);
  if (relative.empty() || *relative.begin() == "..") return "";
  return relative.native();
}

}  // namespace

absl::StatusOr<std::string> ResolveBelowRoots(std::string_view path,
                                              const std::vector<std::string>& roots) {
  const std::string text(path);
  if (!path.starts_with('/') || path.find('\0') != std::string_view::npos) {
    return Forbidden(text, roots, "is not an absolute path");
  }
  fs::path clean = fs::path(text).lexically_normal();
  if (!clean.has_filename()) clean = clean.parent_path();
  for (const std::string& configured : roots) {
    std::error_code error;
    const fs::path real = fs::canonical(configured, error);
    if (error) continue;
    // Both spellings of the root are accepted: as configured and resolved.
    std::string relative = RelativeTo(fs::path(configured).lexically_normal() / "", clean / "");
    if (relative.empty()) relative = RelativeTo(real / "", clean / "");
    if (relative.empty()) continue;
    while (relative.size() > 1 && relative.back() == '/') relative.pop_back();
    const UniqueFd root(open(real.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root.ok()) continue;
    auto fd = Open(root.get(), relative, text, roots);
    if (!fd.ok()) return fd.status();
    struct stat info;
    if (fstat(fd->get(), &info) != 0) return absl::InternalError("stat " + text);
    auto resolved = PathOf(*fd);
    if (!resolved.ok() || S_ISREG(info.st_mode)) return resolved;
    if (!S_ISDIR(info.st_mode)) return Forbidden(text, roots, "is neither a file nor a folder");
    if (auto status = CheckEntries(root.get(), relative, *resolved, roots); !status.ok()) {
      return status;
    }
    return resolved;
  }
  return Forbidden(text, roots, "is not below an allowed folder");
}

}  // namespace quantry::agent
