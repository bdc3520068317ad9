#include "server/jobs/postgres/conninfo.h"

#include <libpq-fe.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>

#include "common/errors.h"

namespace quantry::server::postgres {
namespace {

using ConnectionParameters = std::map<std::string, std::string>;

constexpr const char* kWanted = "wanted postgresql://user@host:port/database";

absl::Status Bad(const std::string& flag, const std::string& text) {
  return MakeError(Reason::kInvalidConfig, "--" + flag + ": " + text);
}

absl::StatusOr<ConnectionParameters> Parse(const std::string& conninfo) {
  char* message = nullptr;
  const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> options(
      PQconninfoParse(conninfo.c_str(), &message), &PQconninfoFree);
  const std::unique_ptr<char, decltype(&PQfreemem)> owned(message, &PQfreemem);
  if (options == nullptr) {
    std::string text = message == nullptr ? "out of memory" : message;
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return Bad("job-store", std::string(kWanted) + "; libpq says: " + text);
  }
  ConnectionParameters parameters;
  for (const PQconninfoOption* option = options.get(); option->keyword != nullptr; ++option) {
    if (option->val != nullptr) parameters[option->keyword] = option->val;
  }
  return parameters;
}

// The first line of the file.
absl::StatusOr<std::string> ReadPassword(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    return Bad("job-store-password-file", path + ": " + std::strerror(errno));
  }
  if ((info.st_mode & 0007) != 0) {
    return Bad("job-store-password-file",
               path + ": wanted a file that others cannot read, got one they can; chmod o= it");
  }
  std::ifstream file(path);
  std::string password;
  std::getline(file, password);
  while (!password.empty() && password.back() == '\r') password.pop_back();
  if (!file.fail() && !password.empty()) return password;
  return Bad("job-store-password-file", path + ": wanted a password on the first line, got none");
}

std::string Quote(const std::string& value) {
  std::string quoted = "'";
  for (char c : value) {
    if (c == '\'' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "'";
}

}  // namespace

bool IsPostgresUri(const std::string& uri) {
  return uri.starts_with("postgresql://") || uri.starts_with("postgres://");
}

absl::StatusOr<std::string> MakeConninfo(const std::string& uri, const std::string& password_file) {
  if (!IsPostgresUri(uri)) return Bad("job-store", std::string(kWanted) + ", got " + uri);
  auto parameters = Parse(uri);
  if (!parameters.ok()) return parameters.status();
  if (parameters->contains("password")) {
    return Bad("job-store",
               "the URI holds a password, which every process list shows; put it into a file and "
               "name it with --job-store-password-file");
  }
  if (!password_file.empty()) {
    auto password = ReadPassword(password_file);
    if (!password.ok()) return password.status();
    (*parameters)["password"] = *std::move(password);
  }
  parameters->try_emplace("connect_timeout", "5");
  parameters->try_emplace("application_name", "quantryd");
  // A dead peer is noticed within a minute, not in hours.
  parameters->try_emplace("keepalives_idle", "20");
  parameters->try_emplace("keepalives_interval", "10");
  parameters->try_emplace("keepalives_count", "3");
  parameters->try_emplace("tcp_user_timeout", "30000");
  std::string conninfo;
  for (const auto& [key, value] : *parameters) conninfo += key + "=" + Quote(value) + " ";
  return conninfo;
}

std::string Describe(const std::string& conninfo) {
  auto parameters = Parse(conninfo);
  if (!parameters.ok()) return "PostgreSQL";
  auto of = [&](const char* key, const char* otherwise) {
    auto found = parameters->find(key);
    return found == parameters->end() ? std::string(otherwise) : found->second;
  };
  return "PostgreSQL " + of("host", "(local socket)") + ":" + of("port", "5432") + "/" +
         of("dbname", "(the user's)");
}

}  // namespace quantry::server::postgres
