#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "common/process.h"

namespace quantry {

// Gone, or a zombie that waits for its new parent.
inline bool HasEnded(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string word;
  stat >> word >> word >> word;
  return word.empty() || word == "Z" || word == "X";
}

// Forks a parent that starts a child by `spawn`, kills the parent, and says
// whether the child was alive before and ended then.
inline testing::AssertionResult DiesWithItsParent(
    const std::function<absl::StatusOr<ChildProcess>()>& spawn) {
  int ends[2];
  if (pipe(ends) != 0) return testing::AssertionFailure() << "no pipe";
  const pid_t parent = fork();
  if (parent == 0) {
    auto child = spawn();
    const pid_t pid = child.ok() ? child->pid() : 0;
    if (write(ends[1], &pid, sizeof(pid)) != sizeof(pid)) _exit(1);
    while (true) pause();
  }
  close(ends[1]);
  pid_t child = 0;
  const bool told = read(ends[0], &child, sizeof(child)) == static_cast<ssize_t>(sizeof(child));
  close(ends[0]);
  const bool started = told && child > 0 && !HasEnded(child);
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  if (!started) return testing::AssertionFailure() << "the child did not start";
  for (int i = 0; i < 1000 && !HasEnded(child); ++i) usleep(5000);
  if (HasEnded(child)) return testing::AssertionSuccess();
  kill(child, SIGKILL);
  return testing::AssertionFailure() << "the child outlives its parent";
}

}  // namespace quantry
