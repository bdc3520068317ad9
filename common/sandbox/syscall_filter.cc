#include "common/sandbox/syscall_filter.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/unique_fd.h"

namespace quantry {
namespace {

// Stands for the process's number until it is known.
constexpr std::uint32_t kOwnPid = 0x5e1fc0de;

// Names a machine does not have are left out.
constexpr const char* kAllowed[] = {
    // memory
    "brk",
    "mmap",
    "mprotect",
    "munmap",
    "mremap",
    "madvise",
    "mincore",
    "msync",
    "membarrier",
    "mbind",
    "get_mempolicy",
    "set_mempolicy",
    "memfd_create",
    // files; Landlock and file modes say which
    "read",
    "write",
    "pread64",
    "pwrite64",
    "readv",
    "writev",
    "preadv",
    "pwritev",
    "preadv2",
    "pwritev2",
    "close",
    "close_range",
    "lseek",
    "stat",
    "fstat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getdents",
    "getdents64",
    "getcwd",
    "chdir",
    "fchdir",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "ftruncate",
    "fallocate",
    "fadvise64",
    "readahead",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "flock",
    "fcntl",
    "dup",
    "dup2",
    "dup3",
    "umask",
    "fchmod",
    "copy_file_range",
    "sendfile",
    "splice",
    "tee",
    "statfs",
    "fstatfs",
    "pipe",
    "pipe2",
    // waiting
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "eventfd",
    "eventfd2",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "nanosleep",
    "clock_nanosleep",
    "restart_syscall",
    "pause",
    // time, identity, resources: looking
    "clock_gettime",
    "clock_getres",
    "gettimeofday",
    "time",
    "times",
    "getpid",
    "gettid",
    "getppid",
    "getpgrp",
    "getpgid",
    "getsid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getgroups",
    "getresuid",
    "getresgid",
    "getrusage",
    "getrlimit",
    "sysinfo",
    "uname",
    "getcpu",
    "getpriority",
    "sched_getaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "getrandom",
    "capget",
    // threads and signals
    "futex",
    "futex_waitv",
    "set_robust_list",
    "get_robust_list",
    "rseq",
    "set_tid_address",
    "arch_prctl",
    "sched_yield",
    "sched_setaffinity",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigsuspend",
    "sigaltstack",
    // A further filter only takes away. The start of the program itself:
    // Landlock says which one, and the engine gives execve up in main.
    "seccomp",
    "execve",
    "exit",
    "exit_group",
};

constexpr const char* kGpuAllowed[] = {
    "ioctl",      "mlock",      "mlock2",     "munlock",     "mlockall", "munlockall",
    "move_pages", "bind",       "listen",     "accept",      "accept4",  "getsockname",
    "getsockopt", "setsockopt", "socketpair", "setpriority",
};

// Terminals, pipes and reflinks; no device can be reached but the null ones.
constexpr std::uint64_t kIoctls[] = {TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX, FICLONE};

constexpr std::uint64_t kPrctls[] = {
    PR_SET_NAME,         PR_GET_NAME,       PR_GET_DUMPABLE,    PR_SET_NO_NEW_PRIVS,
    PR_GET_NO_NEW_PRIVS, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK,  PR_CAPBSET_READ,
    PR_GET_SECCOMP,      PR_SET_SECCOMP,    PR_SET_THP_DISABLE, PR_GET_THP_DISABLE,
    0x53564d41,  // PR_SET_VMA: names for memory areas
};

class FilterBuilder {
 public:
  FilterBuilder() : context_(seccomp_init(SCMP_ACT_ERRNO(ENOSYS)), &seccomp_release) {
    if (context_ == nullptr) error_ = -ENOMEM;
  }

  void Allow(const char* name, std::initializer_list<scmp_arg_cmp> conditions = {}) {
    const int number = seccomp_syscall_resolve_name(name);
    if (error_ != 0 || number < 0) return;
    error_ =
        seccomp_rule_add_array(context_.get(), SCMP_ACT_ALLOW, number,
                               static_cast<unsigned>(conditions.size()), std::data(conditions));
    if (error_ != 0) failed_ = name;
  }

  absl::StatusOr<SyscallFilter> Export() {
    if (error_ == 0) seccomp_attr_set(context_.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
    const UniqueFd file(memfd_create("quantry-filter", MFD_CLOEXEC));
    if (error_ == 0) error_ = file.ok() ? seccomp_export_bpf(context_.get(), file.get()) : -errno;
    if (error_ != 0) {
      return absl::InternalError(
          absl::StrCat("seccomp filter: ", failed_, " ", std::strerror(-error_)));
    }
    SyscallFilter filter;
    const off_t bytes = lseek(file.get(), 0, SEEK_END);
    filter.program.resize(static_cast<std::size_t>(bytes) / sizeof(sock_filter));
    if (pread(file.get(), filter.program.data(), static_cast<std::size_t>(bytes), 0) != bytes) {
      return absl::InternalError("seccomp filter: short read");
    }
    for (std::size_t i = 0; i < filter.program.size(); ++i) {
      const sock_filter& step = filter.program[i];
      if (BPF_CLASS(step.code) == BPF_JMP && step.k == kOwnPid) filter.own_pid.push_back(i);
    }
    return filter;
  }

 private:
  std::unique_ptr<void, decltype(&seccomp_release)> context_;
  int error_ = 0;
  const char* failed_ = "";
};

// O_TRUNC needs no right to write where Landlock does not know about it (before
// Linux 6.2), so it comes only with a mode that needs one.
void AllowOpen(FilterBuilder& builder) {
  for (const std::uint64_t mode : {O_WRONLY, O_RDWR}) {
    builder.Allow("open", {SCMP_A1_32(SCMP_CMP_MASKED_EQ, O_ACCMODE, mode)});
    builder.Allow("openat", {SCMP_A2_32(SCMP_CMP_MASKED_EQ, O_ACCMODE, mode)});
  }
  builder.Allow("open", {SCMP_A1_32(SCMP_CMP_MASKED_EQ, O_TRUNC, 0)});
  builder.Allow("openat", {SCMP_A2_32(SCMP_CMP_MASKED_EQ, O_TRUNC, 0)});
}

}  // namespace

absl::StatusOr<SyscallFilter> MakeSyscallFilter(bool gpu) {
  FilterBuilder builder;
  for (const char* name : kAllowed) builder.Allow(name);
  AllowOpen(builder);
  // Threads, never processes or namespaces. clone3, whose flags lie in memory,
  // is missing, so that the C library takes clone.
  constexpr std::uint64_t kCloneMask = CLONE_THREAD | CLONE_VM | CLONE_NEWNS | CLONE_NEWCGROUP |
                                       CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                                       CLONE_NEWNET;
  builder.Allow("clone", {SCMP_A0(SCMP_CMP_MASKED_EQ, kCloneMask, CLONE_THREAD | CLONE_VM)});
  for (const char* name : {"kill", "tgkill"}) {
    builder.Allow(name, {SCMP_A0_32(SCMP_CMP_EQ, kOwnPid)});
  }
  builder.Allow("prlimit64", {SCMP_A0_32(SCMP_CMP_EQ, 0)});
  for (const std::uint64_t option : kPrctls) {
    builder.Allow("prctl", {SCMP_A0_32(SCMP_CMP_EQ, option)});
  }
  if (gpu) {
    for (const char* name : kGpuAllowed) builder.Allow(name);
    builder.Allow("socket", {SCMP_A0_32(SCMP_CMP_EQ, AF_UNIX)});
  } else {
    for (const std::uint64_t request : kIoctls) {
      builder.Allow("ioctl", {SCMP_A1_32(SCMP_CMP_EQ, request)});
    }
  }
  return builder.Export();
}

}  // namespace quantry
