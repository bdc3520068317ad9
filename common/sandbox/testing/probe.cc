// Tries what a confined engine must not do, and what it must still be able to.
// Each argument NAME or NAME=VALUE is one attempt, in order, and gives a line
// "NAME RESULT", where RESULT is ok or the name of an errno. `quote --job FILE`
// plays the server's engine: a few attempts, told as the problems of a Quote.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <thread>

#include "common/sandbox/testing/driver_steps.h"

extern char** environ;

namespace {

// 0 or errno.
int Result(long returned) { return returned < 0 ? errno : 0; }

int Socket(int family, int type) { return Result(socket(family, type, 0)); }

int Connect() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) return errno;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(9);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int error =
      Result(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)));
  return error == ECONNREFUSED ? 0 : error;  // somebody answered
}

int Open(const std::string& path, int flags) {
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}

// One byte past `FILE:BYTES`.
int WriteBeyond(const std::string& value) {
  const std::size_t colon = value.rfind(':');
  const int fd = open(value.substr(0, colon).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  const int error = Result(pwrite(fd, "x", 1, std::atoll(value.c_str() + colon + 1)));
  close(fd);
  return error;
}

int Execute(const std::string& path) {
  char* argv[] = {const_cast<char*>(path.c_str()), nullptr};
  execve(path.c_str(), argv, environ);
  return errno;
}

int Fork() {
  const long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) _exit(0);
  if (pid > 0) waitpid(static_cast<pid_t>(pid), nullptr, 0);
  return Result(pid);
}

int Peek(pid_t pid) {
  char byte;
  iovec local{&byte, 1};
  iovec remote{environ[0], 1};
  const int error = Result(process_vm_readv(pid, &local, 1, &remote, 1, 0));
  return error == EFAULT ? 0 : error;  // looked, nothing there
}

int Thread() {
  int ran = 0;
  std::thread([&] { ran = 1; }).join();
  return ran == 1 ? 0 : ECHILD;
}

std::string StatusField(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(name + ":\t", 0) == 0) return line.substr(name.size() + 2);
  }
  return "unknown";
}

std::string Environment() {
  std::string names;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    names += std::string(*entry, strcspn(*entry, "=")) + " ";
  }
  return names;
}

int CountFolder(const char* path) {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path)) ++count;
  return count;
}

// Network interfaces but loopback, of which every namespace has one.
int Interfaces() {
  std::ifstream devices("/proc/self/net/dev");
  int count = 0;
  for (std::string line; std::getline(devices, line);) count += line.find(':') != line.npos ? 1 : 0;
  return count - 1;
}

std::string CoreLimit() {
  rlimit limit{};
  getrlimit(RLIMIT_CORE, &limit);
  return std::to_string(limit.rlim_max);
}

using Attempt = std::function<int(const std::string&)>;
const std::map<std::string, Attempt> kAttempts = {
    {"tcp", [](auto&) { return Connect(); }},
    {"tcp6", [](auto&) { return Socket(AF_INET6, SOCK_STREAM); }},
    {"udp", [](auto&) { return Socket(AF_INET, SOCK_DGRAM); }},
    {"unix", [](auto&) { return Socket(AF_UNIX, SOCK_STREAM); }},
    {"netlink", [](auto&) { return Socket(AF_NETLINK, SOCK_RAW); }},
    {"read", [](auto& path) { return Open(path, O_RDONLY); }},
    {"write", [](auto& path) { return Open(path, O_WRONLY | O_CREAT); }},
    {"truncate", [](auto& path) { return Open(path, O_RDONLY | O_TRUNC); }},
    {"truncate-path", [](auto& path) { return Result(truncate(path.c_str(), 0)); }},
    {"chmod", [](auto& path) { return Result(chmod(path.c_str(), 0777)); }},
    {"chown", [](auto& path) { return Result(chown(path.c_str(), getuid(), getgid())); }},
    {"link", [](auto& path) { return Result(link(path.c_str(), "link-of-it")); }},
    {"symlink", [](auto&) { return Result(symlink("/etc/passwd", "symlink-of-it")); }},
    {"fifo", [](auto& path) { return Result(mkfifo(path.c_str(), 0600)); }},
    {"beyond", [](auto& value) { return WriteBeyond(value); }},
    {"exec", [](auto& path) { return Execute(path); }},
    {"fork", [](auto&) { return Fork(); }},
    {"thread", [](auto&) { return Thread(); }},
    {"name-thread", [](auto&) { return quantry::testing::NameThread(); }},
    {"listen-abstractly", [](auto&) { return quantry::testing::ListenAbstractly(); }},
    {"memory-file", [](auto&) { return quantry::testing::MakeMemoryFile(); }},
    {"ptrace", [](auto&) { return Result(ptrace(PTRACE_SEIZE, getppid(), 0, 0)); }},
    {"peek", [](auto&) { return Peek(getppid()); }},
    {"signal-parent", [](auto&) { return Result(kill(getppid(), 0)); }},
    {"signal-self", [](auto&) { return Result(kill(getpid(), 0)); }},
    {"mount", [](auto&) { return Result(mount("none", "/tmp", "tmpfs", MS_BIND, "")); }},
    {"bpf", [](auto&) { return Result(syscall(SYS_bpf, 0, nullptr, 0)); }},
    {"keyctl",
     [](auto&) {
       return Result(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1));
     }},
    {"kexec", [](auto&) { return Result(syscall(SYS_kexec_load, 0, 0, nullptr, ~0UL)); }},
    {"userfaultfd", [](auto&) { return Result(syscall(SYS_userfaultfd, O_CLOEXEC)); }},
    {"io-uring", [](auto&) { return Result(syscall(SYS_io_uring_setup, 1, nullptr)); }},
    {"unshare", [](auto&) { return Result(unshare(CLONE_NEWUSER)); }},
    {"setuid", [](auto&) { return Result(syscall(SYS_setuid, getuid())); }},
    {"reboot", [](auto&) { return Result(syscall(SYS_reboot, 0, 0, 0, 0)); }},
    {"perf", [](auto&) { return Result(syscall(SYS_perf_event_open, nullptr, 0, -1, -1, 0)); }},
    {"raise-files",
     [](auto&) {
       const rlimit more{1 << 19, 1 << 19};
       return Result(setrlimit(RLIMIT_NOFILE, &more));
     }},
    {"wait", [](auto&) { return Result(pause()); }},
    {"keep-after-parent", [](auto&) { return Result(prctl(PR_SET_PDEATHSIG, 0)); }},
};

std::string Describe(const std::string& name) {
  if (name == "environment") return Environment();
  if (name == "descriptors") return std::to_string(CountFolder("/proc/self/fd") - 1);
  if (name == "capabilities") return StatusField("CapEff") + " " + StatusField("CapPrm");
  if (name == "no-new-privileges") return StatusField("NoNewPrivs");
  if (name == "account") return std::to_string(getuid()) + " " + StatusField("Groups");
  if (name == "interfaces") return std::to_string(Interfaces());
  if (name == "core-limit") return CoreLimit();
  return "no such attempt";
}

std::string Try(const std::string& argument) {
  const std::size_t equals = std::min(argument.find('='), argument.size());
  const std::string name = argument.substr(0, equals);
  const auto attempt = kAttempts.find(name);
  if (attempt == kAttempts.end()) return name + " " + Describe(name);
  const std::string value = argument.substr(std::min(equals + 1, argument.size()));
  const int error = attempt->second(value);
  return name + " " + (error == 0 ? "ok" : strerrorname_np(error));
}

int Quote(const std::string& job_file) {
  const std::string folder = std::filesystem::path(job_file).parent_path();
  std::cout << "{\"problems\": [\"" << Try("read=" + job_file);
  for (const std::string& attempt : {std::string("tcp"), std::string("read=/etc/passwd"),
                                     "write=" + folder + "/new", std::string("exec=/bin/true")}) {
    std::cout << "\", \"" << Try(attempt);
  }
  std::cout << "\"]}" << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "quote") return Quote(argv[3]);
  for (int i = 1; i < argc; ++i) std::cout << Try(argv[i]) << std::endl;
  return 0;
}
