#include "client/cli/hold.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>

#include "common/file_identity.h"

namespace quantry::cli {
namespace {

constexpr int kMaxLooks = 100;

}  // namespace

Holder OpenAndHold(const std::string& path, const std::function<int()>& open_path, UniqueFd* fd) {
  for (int looks = 1;; ++looks) {
    *fd = UniqueFd();  // now: closing it later could change errno
    *fd = UniqueFd(open_path());
    const bool last = looks == kMaxLooks;
    if (!fd->ok() && errno == ENOENT && !last) continue;
    if (!fd->ok()) return Holder::kNobody;
    if (flock(fd->get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return Holder::kOther;
    if (IsAt(fd->get(), path) || last) return Holder::kUs;
  }
}

UniqueFd WaitAndHold(const std::string& folder) {
  UniqueFd fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  while (fd.ok() && flock(fd.get(), LOCK_EX) != 0 && errno == EINTR) {
  }
  return fd;
}

}  // namespace quantry::cli
