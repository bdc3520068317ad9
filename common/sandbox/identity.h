// The account a child runs as. Looked up beforehand: the account database must
// not be read between fork and exec.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantry {

struct Identity {
  std::string name;
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;  // all of them, `gid` too

  bool IsIn(gid_t group) const;
};

// NOT_FOUND when there is no such account.
absl::StatusOr<Identity> FindIdentity(const std::string& name);

// The first folder on the way to `path` (absolute, `path` included) that the
// account may not enter; "" when it can be reached.
std::string ClosedFolder(const Identity& identity, const std::string& path);

}  // namespace quantry
