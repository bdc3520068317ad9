#pragma once

#include <poll.h>
#include <unistd.h>

#include <string>

#include "common/process.h"

namespace quantry {

// All that a child writes to stdout until it closes it; what there is when it
// has been silent for 20 s.
inline std::string OutputOf(const ChildProcess& child) {
  std::string text;
  char buffer[4096];
  pollfd wait{.fd = child.stdout_fd(), .events = POLLIN, .revents = 0};
  while (poll(&wait, 1, 20000) > 0) {
    const ssize_t got = read(child.stdout_fd(), buffer, sizeof(buffer));
    if (got <= 0) break;
    text.append(buffer, static_cast<std::size_t>(got));
  }
  return text;
}

}  // namespace quantry
