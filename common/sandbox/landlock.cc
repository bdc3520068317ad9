#include "common/sandbox/landlock.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace quantry {
namespace {

// Debian 12's header ends with ABI 2.
constexpr std::uint64_t kTruncate = 1ULL << 14;     // ABI 3
constexpr std::uint64_t kIoctlDevice = 1ULL << 15;  // ABI 5
struct RulesetAttributes {
  std::uint64_t handled_access_fs;
  std::uint64_t handled_access_net;  // ABI 4: bind, connect
  std::uint64_t scoped;              // ABI 6: abstract UNIX sockets, signals
};

constexpr std::uint64_t kReadFile = LANDLOCK_ACCESS_FS_READ_FILE;
constexpr std::uint64_t kReadAccess = kReadFile | LANDLOCK_ACCESS_FS_READ_DIR;
constexpr std::uint64_t kWriteFile = LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate;
constexpr std::uint64_t kWriteAccess =
    kReadAccess | kWriteFile | LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE |
    LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REFER;
// What a rule on a file, rather than a folder, may give.
constexpr std::uint64_t kFileAccess =
    kReadFile | kWriteFile | LANDLOCK_ACCESS_FS_EXECUTE | kIoctlDevice;

std::uint64_t HandledAccess(int abi) {
  std::uint64_t handled = LANDLOCK_ACCESS_FS_MAKE_SYM * 2 - 1;  // all of ABI 1
  if (abi >= 2) handled |= LANDLOCK_ACCESS_FS_REFER;
  if (abi >= 3) handled |= kTruncate;
  if (abi >= 5) handled |= kIoctlDevice;
  return handled;
}

std::uint64_t AccessBits(LandlockRules::Access access) {
  switch (access) {
    case LandlockRules::Access::kRead:
      return kReadAccess;
    case LandlockRules::Access::kExecute:
      return kReadAccess | LANDLOCK_ACCESS_FS_EXECUTE;
    case LandlockRules::Access::kDevice:
      return kReadAccess | kWriteFile | kIoctlDevice;
    case LandlockRules::Access::kWrite:
      return kWriteAccess;
  }
  return 0;
}

}  // namespace

int LandlockRules::Abi() {
  const long abi =
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return abi > 0 ? static_cast<int>(abi) : 0;
}

absl::StatusOr<LandlockRules> LandlockRules::Create() {
  const int abi = Abi();
  RulesetAttributes attributes{HandledAccess(abi), abi >= 4 ? 3ULL : 0, abi >= 6 ? 3ULL : 0};
  const std::size_t size = abi >= 6   ? sizeof(attributes)
                           : abi >= 4 ? offsetof(RulesetAttributes, scoped)
                                      : offsetof(RulesetAttributes, handled_access_net);
  const long fd = syscall(SYS_landlock_create_ruleset, &attributes, size, 0);
  if (fd < 0) return absl::InternalError(absl::StrCat("Landlock rules: ", std::strerror(errno)));
  return LandlockRules(static_cast<int>(fd), attributes.handled_access_fs);
}

bool LandlockRules::AddRule(const char* path, std::uint64_t access) const {
  const int target = open(path, O_PATH | O_CLOEXEC);
  if (target < 0) return false;
  const bool added = AddRule(target, access);
  const int error = errno;
  close(target);
  errno = error;
  return added;
}

bool LandlockRules::AddRule(int target, std::uint64_t access) const {
  struct stat info {};
  if (fstat(target, &info) != 0) return false;
  landlock_path_beneath_attr rule{};
  rule.allowed_access = access & handled_ & (S_ISDIR(info.st_mode) ? ~0ULL : kFileAccess);
  rule.parent_fd = target;
  return syscall(SYS_landlock_add_rule, fd_.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
}

absl::Status LandlockRules::Allow(const std::string& path, Access access) {
  if (AddRule(path.c_str(), AccessBits(access))) return absl::OkStatus();
  if (errno == ENOENT || errno == ENOTDIR || errno == EACCES) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("Landlock rule for ", path, ": ", std::strerror(errno)));
}

absl::Status LandlockRules::Allow(const UniqueFd& target, Access access) {
  if (AddRule(target.get(), AccessBits(access))) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("Landlock rule: ", std::strerror(errno)));
}

bool LandlockRules::AllowSelf(bool threads) const {
  if (!AddRule("/proc/self", kReadAccess)) return errno == ENOENT;
  return !threads || AddRule("/proc/self/task", kReadAccess | LANDLOCK_ACCESS_FS_WRITE_FILE);
}

bool LandlockRules::Enforce() const {
  return syscall(SYS_landlock_restrict_self, fd_.get(), 0) == 0;
}

}  // namespace quantry
