#pragma once

#include <functional>
#include <string>

#include "common/unique_fd.h"

namespace quantry::cli {

// Whose a file or folder is that one process at a time may write.
enum class Holder {
  kUs,      // until the descriptor closes; the process's death closes it
  kOther,   // another descriptor has it, of this process or another; *fd stays open
  kNobody,  // it could not be opened: errno
};

// Opens what lies at `path` by `open_path`, which returns a descriptor or -1, and
// takes it without waiting (flock); again when `path` names something else or
// nothing by then, as its last holder may have moved or removed it. After 100
// looks it gives kUs although `path` still names something else: some file systems
// give a file another number at each look. A file system that has no such locks
// (folders on NFS) gives kUs to everybody.
Holder OpenAndHold(const std::string& path, const std::function<int()>& open_path, UniqueFd* fd);

// Takes `folder` as OpenAndHold does, but waits for its holder's end.
UniqueFd WaitAndHold(const std::string& folder);

}  // namespace quantry::cli
