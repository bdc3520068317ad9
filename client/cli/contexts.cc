#include "client/cli/contexts.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>
#include <system_error>

#include "client/cli/connection.h"
#include "client/cli/errors.h"
#include "client/cli/text.h"
#include "common/unique_fd.h"

namespace quantry::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Key {
  const char* name;
  std::string ServerContext::*member;
};
constexpr std::array kKeys = {
    Key{"server", &ServerContext::server},           Key{"tls_ca", &ServerContext::tls_ca},
    Key{"client_cert", &ServerContext::client_cert}, Key{"client_key", &ServerContext::client_key},
    Key{"token_file", &ServerContext::token_file},   Key{"tenant", &ServerContext::tenant},
};

// A setting by flag, variable and context, in falling precedence.
struct Setting {
  std::string GlobalOptions::*flag;
  const char* variable;
  std::string ServerContext::*context;
  bool is_credential = true;
};
constexpr std::array kSettings = {
    Setting{&GlobalOptions::tls_ca, "QUANTRY_TLS_CA_FILE", &ServerContext::tls_ca},
    Setting{&GlobalOptions::client_cert, "QUANTRY_CLIENT_CERT_FILE", &ServerContext::client_cert},
    Setting{&GlobalOptions::client_key, "QUANTRY_CLIENT_KEY_FILE", &ServerContext::client_key},
    Setting{&GlobalOptions::token_file, "QUANTRY_TOKEN_FILE", &ServerContext::token_file},
    Setting{&GlobalOptions::tenant, "QUANTRY_TENANT", &ServerContext::tenant, false},
};

absl::Status BadFile(const std::string& path, std::string_view what) {
  return WithNext(absl::InvalidArgumentError(Cat(path, ": ", what)),
                  "repair the file, or remove it and run `quantry login` again");
}

absl::StatusOr<ServerContext> ParseContext(const Json& json, const std::string& path,
                                           const std::string& name) {
  if (!json.is_object()) return BadFile(path, Cat("contexts.", name, ": wanted an object"));
  ServerContext context;
  for (const auto& [key, value] : json.items()) {
    const Key* known = nullptr;
    for (const Key& row : kKeys) {
      if (key == row.name) known = &row;
    }
    if (known == nullptr || !value.is_string()) {
      return BadFile(path, Cat("contexts.", name, ".", key,
                               ": wanted text under server, tls_ca, client_cert, client_key, "
                               "token_file or tenant"));
    }
    context.*known->member = value.get<std::string>();
  }
  if (context.server.empty()) return BadFile(path, Cat("contexts.", name, ": wanted a server"));
  return context;
}

absl::StatusOr<ServerContext> Find(const Contexts& contexts, const std::string& name) {
  const auto found = contexts.all.find(name);
  if (found != contexts.all.end()) return found->second;
  std::string names;
  for (const auto& [known, context] : contexts.all) names += (names.empty() ? "" : ", ") + known;
  return absl::InvalidArgumentError(Cat("no context \"", name, "\": wanted ",
                                        names.empty() ? "one made by `quantry login`" : names));
}

// A server that was named beside contexts.
struct NamedServer {
  std::string target;  // "" = none
  const char* source = "";
};

// --context is said now, QUANTRY_SERVER was said some time.
NamedServer ServerNamed(const Environment& env, const GlobalOptions& global) {
  if (!global.server.empty()) return {global.server, "--server"};
  if (!global.context.empty()) return {};
  return {env.variable("QUANTRY_SERVER"), "QUANTRY_SERVER"};
}

bool StartsWithOne(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(),
                     [text](std::string_view word) { return text.starts_with(word); });
}

bool IsPort(std::string_view text) {
  int port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port > 0 && port <= 65535;
}

// "far:7070", "[::1]:7070". Without a port gRPC would take 443.
bool IsHostAndPort(std::string_view target) {
  const size_t colon = target.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  const std::string_view host = target.substr(0, colon);
  const bool bracketed = host.front() == '[' && host.back() == ']';
  return (bracketed || host.find(':') == std::string_view::npos) &&
         IsPort(target.substr(colon + 1));
}

// The context that counts here; empty without one.
absl::StatusOr<ServerContext> ChooseContext(const Environment& env, const NamedServer& server,
                                            GlobalOptions* global) {
  if (global->context.empty() && global->server.empty()) {
    global->context = env.variable("QUANTRY_CONTEXT");
  }
  if (global->context.empty() && !server.target.empty()) return ServerContext();
  auto contexts = LoadContexts(env);
  if (!contexts.ok()) return contexts.status();
  if (global->context.empty()) global->context = contexts->current;
  if (global->context.empty()) return ServerContext();
  return Find(*contexts, global->context);
}

// JSON holds no other text. The bytes stay out of the message, which may be JSON too.
absl::Status CheckText(const Key& key, const std::string& value) {
  const std::string kept = Json(value).dump(-1, ' ', false, Json::error_handler_t::ignore);
  if (Json::parse(kept).get<std::string>() == value) return absl::OkStatus();
  std::string flag = key.name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return WithNext(
      absl::InvalidArgumentError(Cat("--", flag, ": wanted UTF-8 text, got bytes that are none")),
      "give the file or its folder a name in UTF-8");
}

absl::Status CannotWrite(const std::string& path, int error) {
  return WithNext(
      absl::FailedPreconditionError(Cat("cannot write \"", path, "\": ", std::strerror(error))),
      "make room there or choose another XDG_CONFIG_HOME, then run it again");
}

bool WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = write(fd, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(put));
  }
  return true;
}

// For its owner alone. After a crash the file is the old one or the new one, whole.
absl::Status WritePrivateFile(const std::string& path, std::string_view bytes) {
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  if (error) return CannotWrite(path, error.value());
  std::string temporary = path + ".XXXXXX";
  const UniqueFd fd(mkostemp(temporary.data(), O_CLOEXEC));
  if (!fd.ok()) return CannotWrite(path, errno);
  if (WriteAll(fd.get(), bytes) && fsync(fd.get()) == 0 &&
      rename(temporary.c_str(), path.c_str()) == 0) {
    return absl::OkStatus();
  }
  absl::Status status = CannotWrite(path, errno);
  (void)unlink(temporary.c_str());
  return status;
}

absl::Status TwoServers(const NamedServer& server, const std::string& name,
                        const ServerContext& context) {
  return WithNext(
      absl::InvalidArgumentError(Cat("wanted one server, got two: ", server.source, " names ",
                                     server.target, ", context \"", name, "\" is for ",
                                     context.server, ", and a token goes to the server it is for")),
      Cat("leave one of them out; `quantry login ", server.target,
          "` makes a context for that address"));
}

}  // namespace

std::string ContextsPath(const Environment& env) {
  if (const std::string dir = env.variable("XDG_CONFIG_HOME"); !dir.empty()) {
    return dir + "/quantry/config.json";
  }
  const std::string home = env.variable("HOME");
  return home.empty() ? "" : home + "/.config/quantry/config.json";
}

absl::StatusOr<Contexts> LoadContexts(const Environment& env) {
  Contexts contexts;
  const std::string path = ContextsPath(env);
  std::error_code error;
  if (path.empty() || !fs::exists(path, error)) return contexts;
  std::ifstream in(path, std::ios::binary);
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return BadFile(path, "wanted a JSON object with current and contexts");
  for (const auto& [key, value] : json.items()) {
    if (key == "current" && value.is_string()) {
      contexts.current = value.get<std::string>();
    } else if (key == "contexts" && value.is_object()) {
      for (const auto& [name, one] : value.items()) {
        auto context = ParseContext(one, path, name);
        if (!context.ok()) return context.status();
        contexts.all[name] = *std::move(context);
      }
    } else {
      return BadFile(
          path, Cat("wanted \"current\" (text) and \"contexts\" (an object), got \"", key, "\""));
    }
  }
  return contexts;
}

absl::Status SaveContexts(const Environment& env, const Contexts& contexts) {
  const std::string path = ContextsPath(env);
  if (path.empty()) {
    return absl::InvalidArgumentError("wanted XDG_CONFIG_HOME or HOME, got neither");
  }
  Json all = Json::object();
  for (const auto& [name, context] : contexts.all) {
    Json one = Json::object();
    for (const Key& key : kKeys) {
      const std::string& value = context.*key.member;
      if (absl::Status status = CheckText(key, value); !status.ok()) return status;
      if (!value.empty()) one[key.name] = value;
    }
    all[name] = std::move(one);
  }
  const Json json = {{"current", contexts.current}, {"contexts", std::move(all)}};
  return WritePrivateFile(path, json.dump(2) + "\n");
}

absl::Status CheckContextName(const std::string& name) {
  constexpr size_t kMaxBytes = 63;
  const bool plain = name.find_first_not_of(
                         "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                         "0123456789._-") == std::string::npos;
  if (!name.empty() && name.size() <= kMaxBytes && plain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat("wanted a context name of 1 to 63 letters, digits, \".\", \"_\" and \"-\", got \"", name,
          "\""));
}

absl::Status CheckServerAddress(std::string_view source, const std::string& target) {
  // gRPC would look for a host called "http".
  for (const char* scheme : {"http://", "https://"}) {
    if (target.rfind(scheme, 0) != 0) continue;
    return absl::InvalidArgumentError(Cat(source, ": wanted HOST:PORT, got \"", target,
                                          "\"; leave the ", scheme,
                                          " out (TLS is asked for by --tls-ca)"));
  }
  // What follows gRPC's own schemes is gRPC's to read.
  if (StartsWithOne(target, {"unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:"})) {
    return absl::OkStatus();
  }
  if (target.empty() || IsHostAndPort(target)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat(source, ": wanted HOST:PORT with a port of 1 to 65535, got \"", target,
          "\"; quantryd's own is 7070, and an IPv6 address stands in brackets: [::1]:7070"));
}

absl::Status ResolveGlobal(const Environment& env, GlobalOptions* global) {
  const NamedServer server = ServerNamed(env, *global);
  if (absl::Status status = CheckServerAddress(server.source, server.target); !status.ok()) {
    return status;
  }
  const auto context = ChooseContext(env, server, global);
  if (!context.ok()) return context.status();
  global->server = server.target;
  global->server_source = server.target.empty() ? "" : server.source;
  if (!context->server.empty()) {
    if (!server.target.empty() && server.target != context->server) {
      return TwoServers(server, global->context, *context);
    }
    global->server = context->server;
    global->server_source = Cat("context ", global->context);
    absl::Status status = CheckServerAddress(global->server_source, global->server);
    if (!status.ok()) return status;
  }
  // Credentials in the environment are for the server in the environment.
  const std::string variable = env.variable("QUANTRY_SERVER");
  const bool elsewhere = !variable.empty() && variable != global->server;
  for (const Setting& setting : kSettings) {
    std::string& value = global->*setting.flag;
    if (value.empty() && !(elsewhere && setting.is_credential)) {
      value = env.variable(setting.variable);
    }
    if (value.empty()) value = (*context).*setting.context;
  }
  if (global->tenant.empty()) global->tenant = "default";
  return MakeChannelCredentials(SecurityOf(*global), ResolveServer(env, *global).target).status();
}

ClientSecurity SecurityOf(const GlobalOptions& global) {
  return {.ca_file = global.tls_ca,
          .cert_file = global.client_cert,
          .key_file = global.client_key,
          .token_file = global.token_file};
}

}  // namespace quantry::cli
