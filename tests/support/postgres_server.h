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

  // Whether the machine has the binaries.
  static bool IsInstalled();

  void Start();
  void Stop(int signal);  // SIGINT: fast, SIGQUIT: immediate (as a crash)

  // postgresql://... of an empty schema `name`, made when absent.
  std::string UriOf(const std::string& name) const;
  // Runs statements as the superuser.
  void Execute(const std::string& sql) const;

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

}  // namespace quantry::testing
