#include "client/cli/hold.h"

#include <sys/file.h>

#include <cerrno>

#include "common/file_identity.h"

namespace quantry::cli {

Holder TakeHold(int fd, const std::string& path) {
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return Holder::kOther;
  return IsAt(fd, path) ? Holder::kUs : Holder::kNobody;
}

}  // namespace quantry::cli
