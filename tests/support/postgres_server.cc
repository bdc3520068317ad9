#include "tests/support/postgres_server.h"

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <pqxx/pqxx>
#include <sstream>
#include <thread>
#include <vector>

namespace quantry::testing {
namespace {

namespace fs = std::filesystem;

// Debian keeps the server's programs out of PATH: /usr/lib/postgresql/15/bin.
std::string BinFolder() {
  std::string newest;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/usr/lib/postgresql", none)) {
    const std::string bin = entry.path().string() + "/bin";
    if (fs::exists(bin + "/initdb") && bin > newest) newest = bin;
  }
  return newest;
}

// PostgreSQL refuses to run as root.
const passwd* UserForServer() {
  if (getuid() != 0) return nullptr;
  const passwd* user = getpwnam("postgres");
  return user != nullptr ? user : getpwnam("nobody");
}

void Die(const std::string& what, const std::string& log) {
  std::stringstream text;
  text << std::ifstream(log).rdbuf();
  std::fprintf(stderr, "PostgresServer: %s\n%s\n", what.c_str(), text.str().c_str());
  std::abort();
}

pid_t Spawn(const std::vector<std::string>& argv, const std::string& log) {
  std::vector<char*> pointers;
  for (const std::string& word : argv) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  const passwd* user = UserForServer();
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGINT);  // nothing is left when the test dies
  const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dup2(out, 1);
  dup2(out, 2);
  if (user != nullptr &&
      (setgroups(0, nullptr) != 0 || setgid(user->pw_gid) != 0 || setuid(user->pw_uid) != 0)) {
    _exit(126);
  }
  if (user != nullptr) prctl(PR_SET_PDEATHSIG, SIGINT);  // setuid has cleared it
  execv(pointers[0], pointers.data());
  _exit(127);
}

}  // namespace

PostgresServer& PostgresServer::Shared() {
  static PostgresServer server;
  return server;
}

PostgresServer::PostgresServer() {
  if (BinFolder().empty()) Die("no PostgreSQL server on this machine: run scripts/bootstrap", "");
  std::string path = fs::temp_directory_path() / "quantry_pg_XXXXXX";
  folder_ = mkdtemp(path.data());
  if (const passwd* user = UserForServer(); user != nullptr) {
    if (chown(folder_.c_str(), user->pw_uid, user->pw_gid) != 0) Die("chown", "");
  }
  const std::string log = folder_ + ".log";
  const pid_t pid = Spawn({BinFolder() + "/initdb", "-D", folder_ + "/data", "-U", "quantry", "-A",
                           "trust", "-E", "UTF8", "--locale=C", "--no-sync"},
                          log);
  int status = 0;
  waitpid(pid, &status, 0);
  if (status != 0) Die("initdb failed", log);
  Start();
}

PostgresServer::~PostgresServer() {
  Stop(SIGINT);
  fs::remove_all(folder_);
  fs::remove(folder_ + ".log");
}

void PostgresServer::Start() {
  const std::string log = folder_ + ".log";
  pid_ = Spawn({BinFolder() + "/postgres", "-D", folder_ + "/data", "-k", folder_, "-c",
                "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200", "-c",
                "shared_buffers=32MB"},
               log);
  for (int i = 0; i < 300; ++i) {
    if (waitpid(pid_, nullptr, WNOHANG) != 0) break;
    try {
      pqxx::connection probe("host=" + folder_ + " user=quantry dbname=postgres");
      return;
    } catch (const std::exception&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  Die("postgres did not start", log);
}

void PostgresServer::Stop(int signal) {
  if (pid_ < 0) return;
  kill(pid_, signal);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

std::string PostgresServer::Execute(const std::string& sql) const {
  pqxx::connection connection("host=" + folder_ + " user=quantry dbname=postgres");
  const pqxx::result result = pqxx::nontransaction(connection).exec(sql);
  return result.empty() ? "" : result[0][0].c_str();
}

std::string PostgresServer::NewUri() { return UriOf("t" + std::to_string(++schemas_)); }

std::string PostgresServer::UriOf(const std::string& name) const {
  Execute("SET client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS " + name);
  return "postgresql://quantry@/postgres?host=" + folder_ + "&options=-csearch_path%3D" + name;
}

}  // namespace quantry::testing
