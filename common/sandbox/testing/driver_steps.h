// Steps that NVIDIA's driver takes while it starts and that a confinement may refuse, for the probe
// of the sandbox's tests and for the imagined GPU's driver. Each gives 0 or errno.
#pragma once

#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <semaphore>
#include <string>
#include <thread>

namespace quantry::testing {

// Another thread's name is written below /proc/self/task.
inline int NameThread() {
  std::binary_semaphore named(0);
  std::thread other([&] { named.acquire(); });
  const int error = pthread_setname_np(other.native_handle(), "named");
  named.release();
  other.join();
  return error;
}

inline int ListenAbstractly() {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = "quantry-" + std::to_string(getpid()) + "-" + std::to_string(fd);
  name.copy(address.sun_path + 1, name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const bool listens =
      bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0 && listen(fd, 1) == 0;
  const int error = listens ? 0 : errno;
  close(fd);
  return error;
}

inline int MakeMemoryFile() {
  const int fd = memfd_create("quantry", MFD_CLOEXEC);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}

}  // namespace quantry::testing
