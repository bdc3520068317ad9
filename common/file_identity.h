// Which file a descriptor has open.
#pragma once

#include <sys/stat.h>

#include <string>

namespace quantry {

// Whether the open file is still the one of that name: who held its lock before
// may have moved or removed it.
inline bool IsAt(int fd, const std::string& path) {
  struct stat open_file {};
  struct stat named {};
  return fstat(fd, &open_file) == 0 && stat(path.c_str(), &named) == 0 &&
         open_file.st_ino == named.st_ino && open_file.st_dev == named.st_dev;
}

}  // namespace quantry
