#include "worker/engine/base/seal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

namespace quantry::engine {
namespace {

// What execve of a program says in a child that prepared itself.
template <typename Prepare>
int ExecveIn(const Prepare& prepare) {
  const pid_t child = fork();
  if (child == 0) {
    prepare();
    char name[] = "true";
    char* argv[] = {name, nullptr};
    execve("/bin/true", argv, nullptr);
    _exit(errno);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}

TEST(SealTest, NoProgramsAfterIt) {
  EXPECT_EQ(ExecveIn([] {}), 0);
  EXPECT_EQ(ExecveIn([] {
              if (!ForbidPrograms()) _exit(1);
            }),
            EPERM);
}

TEST(SealTest, HoldsForThreadsThatWereThere) {
  const pid_t child = fork();
  if (child == 0) {
    int sealed[2], done[2];
    if (pipe(sealed) != 0 || pipe(done) != 0) _exit(1);
    std::thread other([&] {
      char byte;
      (void)!read(sealed[0], &byte, 1);
      char name[] = "true";
      char* argv[] = {name, nullptr};
      execve("/bin/true", argv, nullptr);
      _exit(errno);
    });
    if (!ForbidPrograms()) _exit(1);
    (void)!write(sealed[1], "x", 1);
    other.join();
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), EPERM);
}

}  // namespace
}  // namespace quantry::engine
