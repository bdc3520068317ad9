#pragma once

#include <sys/types.h>

#include <string>

// A PostgreSQL server of a test's own, from the machine's packages: a new
// cluster in a temporary folder, reached through a socket in it, run as the
// user postgres (or nobody) when the test is root. fsync is off: tests of
// durability stop it, they do not cut the power.
namespace quantry::testing {

class PostgresServer {
 public:
  // Makes the cluster and starts it. CHECK-fails (with the log) when it cannot.
  PostgresServer();
  // Stops it and removes the folder.
  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  // One for all tests of a program, started at its first use and stopped at its
  // end; each test takes a schema of its own.
  static PostgresServer& Shared();

  // The server ends with the thread that started it.
  void Start();
  void Stop(int signal);  // SIGINT: fast, SIGQUIT: immediate (as a crash)

  // postgresql://... of an empty schema `name`, made when absent.
  std::string UriOf(const std::string& name) const;
  // UriOf a name that was not used before.
  std::string NewUri();
  // Runs statements as the superuser; the first column of the first row, "" without one.
  std::string Execute(const std::string& sql) const;

 private:
  std::string folder_;
  pid_t pid_ = -1;
  int schemas_ = 0;
};

}  // namespace quantry::testing
