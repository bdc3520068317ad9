#include "common/sandbox/sandbox.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/confined.h"
#include "common/sandbox/program_files.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;
using Access = LandlockRules::Access;

// A checkpoint of many shards is mapped a file at a time; LibTorch and CUDA
// take some tens.
constexpr rlim_t kMaxDescriptors = 4096;
// Threads of the account; processes cannot be made at all.
constexpr rlim_t kMaxThreads = 4096;

// Where shared libraries and what they look up lie. Nothing here is secret.
constexpr const char* kSystemFiles[] = {
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/filesystems",
    "/proc/sys",
    "/sys",
};
constexpr const char* kGpuFiles[] = {"/proc/devices",     "/proc/modules",     "/proc/driver",
                                     "/usr/share/nvidia", "/usr/local/nvidia", "/usr/local/cuda"};

bool WriteText(const char* path, const char* text, std::size_t size) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool written = write(fd, text, size) == static_cast<ssize_t>(size);
  close(fd);
  return written;
}

// execve gives nothing back to who holds nothing and has no_new_privs.
bool DropCapabilities() {
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  syscall(SYS_capset, &header, data);  // may be forbidden to who has none
  if (syscall(SYS_capget, &header, data) != 0) return false;
  if ((data[0].permitted | data[1].permitted) == 0) return true;
  errno = EPERM;
  return false;
}

// Soft and hard limit; never above what this process may raise.
rlimit AtMost(int resource, rlim_t value) {
  rlimit now{};
  getrlimit(static_cast<__rlimit_resource>(resource), &now);
  return {std::min(now.rlim_max, value), std::min(now.rlim_max, value)};
}

// Links in an input folder lead to the files themselves, which lie elsewhere.
void AddLinked(const std::string& path, std::vector<std::string>* files) {
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    std::error_code broken;
    if (!it->is_symlink(broken)) continue;
    const fs::path target = fs::canonical(it->path(), broken);
    if (!broken && fs::is_regular_file(target, broken)) files->push_back(target);
  }
}

std::vector<std::string> RealFolders(const std::vector<std::string>& folders) {
  std::vector<std::string> real;
  for (const std::string& folder : folders) {
    std::error_code error;
    fs::path path = fs::canonical(folder, error);
    if (!error) real.push_back(std::move(path));
  }
  return real;
}

bool LiesIn(const std::vector<std::string>& folders, const UniqueFd& fd) {
  const auto path = PathOfOpen(fd);
  return path.ok() && std::any_of(folders.begin(), folders.end(), [&](const std::string& folder) {
           return !RelativeToRoot(folder, *path).empty();
         });
}

// Rules for `read` and what its links lead to: see Prepare.
absl::Status AllowInputs(const SandboxOptions& options, LandlockRules& rules) {
  std::vector<std::string> inputs = options.read;
  for (const std::string& folder : options.read) AddLinked(folder, &inputs);
  const std::vector<std::string> within = RealFolders(options.within);
  for (const std::string& input : inputs) {
    const UniqueFd fd(open(input.c_str(), O_PATH | O_CLOEXEC));
    if (!fd.ok() || (!options.within.empty() && !LiesIn(within, fd))) continue;
    if (absl::Status status = rules.Allow(fd, Access::kRead); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::vector<std::string> Devices() {
  std::vector<std::string> devices;
  std::error_code error;
  for (fs::directory_iterator it("/dev", error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().native().starts_with("nvidia")) devices.push_back(it->path());
  }
  return devices;
}

}  // namespace

std::string SandboxReport::Text() const {
  std::vector<std::string> parts = {"seccomp"};
  if (landlock_abi > 0) parts.push_back(absl::StrCat("landlock ", landlock_abi));
  if (network_namespace) parts.push_back("network namespace");
  if (own_account) parts.push_back("account");
  return absl::StrJoin(parts, ", ");
}

absl::Status Sandbox::AllowFiles(const SandboxOptions& options) {
  auto program = ReadProgramFiles(options.program);
  if (!program.ok()) return program.status();
  if (landlock_abi_ == 0) return absl::OkStatus();
  auto rules = LandlockRules::Create();
  if (!rules.ok()) return rules.status();
  std::vector<std::string> read = program->library_folders;
  read.insert(read.end(), std::begin(kSystemFiles), std::end(kSystemFiles));
  if (options.gpu) read.insert(read.end(), std::begin(kGpuFiles), std::end(kGpuFiles));
  if (const char* libraries = std::getenv("LD_LIBRARY_PATH"); libraries != nullptr) {
    for (const absl::string_view folder : absl::StrSplit(libraries, ':', absl::SkipEmpty())) {
      read.emplace_back(folder);
    }
  }
  std::vector<std::pair<std::string, Access>> all;
  for (std::string& path : read) all.emplace_back(std::move(path), Access::kRead);
  for (const std::string& path : options.write) all.emplace_back(path, Access::kWrite);
  all.emplace_back(options.program, Access::kExecute);
  all.emplace_back(program->interpreter, Access::kExecute);
  for (const char* device : {"/dev/null", "/dev/zero"}) all.emplace_back(device, Access::kDevice);
  for (std::string& device : options.gpu ? Devices() : std::vector<std::string>()) {
    all.emplace_back(std::move(device), Access::kDevice);
  }
  for (const auto& [path, access] : all) {
    if (absl::Status status = rules->Allow(path, access); !status.ok()) return status;
  }
  if (absl::Status status = AllowInputs(options, *rules); !status.ok()) return status;
  landlock_ = *std::move(rules);
  return absl::OkStatus();
}

absl::StatusOr<Sandbox> Sandbox::Prepare(const SandboxOptions& options) {
  Sandbox sandbox;
  auto filter = MakeSyscallFilter(options.gpu);
  if (!filter.ok()) return filter.status();
  sandbox.filter_ = *std::move(filter);
  sandbox.gpu_ = options.gpu;
  sandbox.landlock_abi_ = LandlockRules::Abi();
  if (absl::Status status = sandbox.AllowFiles(options); !status.ok()) return status;
  sandbox.identity_ = options.identity;
  sandbox.limits_ = {{RLIMIT_CORE, {0, 0}}};
  sandbox.descriptors_ = AtMost(RLIMIT_NOFILE, kMaxDescriptors);
  if (options.max_file_bytes > 0) {
    sandbox.limits_.emplace_back(RLIMIT_FSIZE, AtMost(RLIMIT_FSIZE, options.max_file_bytes));
  }
  if (options.identity) {
    sandbox.limits_.emplace_back(RLIMIT_NPROC, AtMost(RLIMIT_NPROC, kMaxThreads));
  }
  sandbox.uid_map_ = absl::StrCat(geteuid(), " ", geteuid(), " 1");
  sandbox.gid_map_ = absl::StrCat(getegid(), " ", getegid(), " 1");
  return sandbox;
}

bool Sandbox::LeaveNetwork() const {
  if (unshare(CLONE_NEWNET) == 0) return true;
  // Without privileges it takes a user namespace, in which no other account
  // could be switched to.
  if (identity_ || unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
  WriteText("/proc/self/setgroups", "deny", 4);
  WriteText("/proc/self/uid_map", uid_map_.data(), uid_map_.size());
  WriteText("/proc/self/gid_map", gid_map_.data(), gid_map_.size());
  return true;
}

// System calls themselves: the C library's functions would look for the
// threads that fork left behind.
bool Sandbox::SwitchAccount() const {
  const Identity& to = *identity_;
  return syscall(SYS_setgroups, to.groups.size(), to.groups.data()) == 0 &&
         syscall(SYS_setresgid, to.gid, to.gid, to.gid) == 0 &&
         syscall(SYS_setresuid, to.uid, to.uid, to.uid) == 0;
}

bool Sandbox::DropPrivileges(SandboxReport* report) const {
  report->network_namespace = LeaveNetwork();
  for (const auto& [resource, limit] : limits_) {
    if (setrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return false;
  }
  // Beyond the limit write(2) shall fail instead of kill.
  signal(SIGXFSZ, SIG_IGN);
  if (identity_) {
    if (!SwitchAccount()) return false;
    report->own_account = true;
  }
  return DropCapabilities();
}

bool Sandbox::Lock(SandboxReport* report) const {
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return false;
  if (landlock_) {
    if (!landlock_->AllowSelf(gpu_) || !landlock_->Enforce()) return false;
    report->landlock_abi = landlock_abi_;
  }
  // Only now: the parent's descriptors, more perhaps, are still open.
  if (setrlimit(RLIMIT_NOFILE, &descriptors_) != 0) return false;
  // The child's copy of the memory: nobody else sees the change.
  auto* program = const_cast<sock_filter*>(filter_.program.data());
  for (const std::size_t i : filter_.own_pid) program[i].k = static_cast<__u32>(getpid());
  const sock_fprog filter{static_cast<unsigned short>(filter_.program.size()), program};
  // The prctl, not seccomp(2): systemd's @system-service has only this one.
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0;
}

}  // namespace quantry
