#include "common/sandbox/identity.h"

#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"

namespace quantry {

bool Identity::IsIn(gid_t group) const {
  return group == gid || std::find(groups.begin(), groups.end(), group) != groups.end();
}

absl::StatusOr<Identity> FindIdentity(const std::string& name) {
  std::vector<char> buffer(64 << 10);
  passwd entry{};
  passwd* found = nullptr;
  if (getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) != 0 ||
      found == nullptr) {
    return absl::NotFoundError(absl::StrCat("there is no account \"", name, "\""));
  }
  Identity identity{name, entry.pw_uid, entry.pw_gid, std::vector<gid_t>(64)};
  int count = static_cast<int>(identity.groups.size());
  if (getgrouplist(name.c_str(), entry.pw_gid, identity.groups.data(), &count) < 0) {
    identity.groups.resize(static_cast<std::size_t>(count));
    getgrouplist(name.c_str(), entry.pw_gid, identity.groups.data(), &count);
  }
  identity.groups.resize(static_cast<std::size_t>(count));
  return identity;
}

std::string ClosedFolder(const Identity& identity, const std::string& path) {
  std::filesystem::path way;
  for (const auto& part : std::filesystem::path(path)) {
    way /= part;
    struct stat info {};
    if (stat(way.c_str(), &info) != 0) return way;
    const mode_t wanted = info.st_uid == identity.uid  ? S_IXUSR
                          : identity.IsIn(info.st_gid) ? S_IXGRP
                                                       : S_IXOTH;
    if (S_ISDIR(info.st_mode) && (info.st_mode & wanted) == 0) return way;
  }
  return "";
}

}  // namespace quantry
