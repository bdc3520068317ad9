#include "client/cli/hold.h"

#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>

namespace quantry::cli {
namespace {

bool IsAt(int fd, const std::string& path) {
  struct stat open_file {};
  struct stat named {};
  return fstat(fd, &open_file) == 0 && stat(path.c_str(), &named) == 0 &&
         open_file.st_ino == named.st_ino && open_file.st_dev == named.st_dev;
}

}  // namespace

Holder TakeHold(int fd, const std::string& path) {
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return Holder::kOther;
  return IsAt(fd, path) ? Holder::kUs : Holder::kNobody;
}

}  // namespace quantry::cli
