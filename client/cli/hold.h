#pragma once

#include <string>

namespace quantry::cli {

// Whose a file or folder is that one process at a time may write.
enum class Holder {
  kUs,      // until the descriptor closes; the process's death closes it
  kOther,   // another descriptor has it, of this process or another
  kNobody,  // `path` names something else by now: open it again
};

// Takes what `fd` has opened at `path`, without waiting (flock). A file system
// that has no such locks (folders on NFS) gives kUs to everybody.
Holder TakeHold(int fd, const std::string& path);

}  // namespace quantry::cli
