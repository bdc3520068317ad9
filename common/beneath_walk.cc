#include "common/beneath_walk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <string>
#include <utility>
#include <vector>

#include "common/unique_fd.h"

namespace quantry {
namespace {

constexpr int kMaxLinks = 40;  // as the kernel's

int OpenAt(int folder_fd, const std::string& name, int flags, unsigned mode = 0) {
  int fd = -1;
  do {
    fd = openat(folder_fd, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd < 0 ? -errno : fd;
}

class Walk {
 public:
  Walk(int folder_fd, bool follow_links) : root_(folder_fd), follow_links_(follow_links) {}

  int Open(std::string_view path, int flags, unsigned mode) {
    Insert(path);
    while (!parts_.empty()) {
      const std::string name = std::move(parts_.back());
      parts_.pop_back();
      if (name.empty() || name == ".") continue;
      if (name == "..") {
        if (folders_.empty()) return -EXDEV;
        folders_.pop_back();
        continue;
      }
      const bool last = parts_.empty();
      UniqueFd seen(OpenAt(Here(), name, O_PATH));
      if (last && seen.get() == -ENOENT && (flags & O_CREAT) != 0) {
        return OpenAt(Here(), name, flags, mode);
      }
      if (!seen.ok()) return seen.get();
      struct stat info {};
      if (fstat(seen.get(), &info) != 0) return -errno;
      if (S_ISLNK(info.st_mode)) {
        if (const int error = Follow(seen); error != 0) return error;
      } else if (!last) {
        if (!S_ISDIR(info.st_mode)) return -ENOTDIR;
        Enter(std::move(seen));
      } else if ((flags & O_PATH) != 0) {
        const bool is_wanted = (flags & O_DIRECTORY) == 0 || S_ISDIR(info.st_mode);
        return is_wanted ? seen.Release() : -ENOTDIR;
      } else {
        return OpenAt(Here(), name, flags, mode);  // ELOOP if it is a link by now
      }
    }
    return OpenAt(Here(), ".", flags, mode);
  }

 private:
  int Here() const { return folders_.empty() ? root_ : folders_.back().get(); }

  // Only links can have "..": without them the way back is not needed.
  void Enter(UniqueFd folder) {
    if (!follow_links_) folders_.clear();
    folders_.push_back(std::move(folder));
  }

  // 0, or the negated errno.
  int Follow(const UniqueFd& link) {
    if (!follow_links_ || ++links_ > kMaxLinks) return -ELOOP;
    std::array<char, PATH_MAX> target;
    const ssize_t size = readlinkat(link.get(), "", target.data(), target.size());
    if (size < 0) return -errno;
    if (static_cast<size_t>(size) == target.size()) return -ENAMETOOLONG;
    const std::string_view path(target.data(), static_cast<size_t>(size));
    if (path.starts_with('/')) return -EXDEV;
    Insert(path);
    return 0;
  }

  // What comes before the parts left.
  void Insert(std::string_view path) {
    const size_t rest = parts_.size();
    for (size_t begin = 0; begin <= path.size();) {
      const size_t end = std::min(path.find('/', begin), path.size());
      parts_.emplace_back(path.substr(begin, end - begin));
      begin = end + 1;
    }
    std::reverse(parts_.begin() + static_cast<std::ptrdiff_t>(rest), parts_.end());
  }

  const int root_;
  const bool follow_links_;
  std::vector<UniqueFd> folders_;   // below the root, the innermost last
  std::vector<std::string> parts_;  // to go, the next one last
  int links_ = 0;
};

}  // namespace

int WalkBeneath(int folder_fd, std::string_view path, int flags, bool follow_links, unsigned mode) {
  return Walk(folder_fd, follow_links).Open(path, flags, mode);
}

}  // namespace quantry
