#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/environment.h"
#include "client/cli/options.h"
#include "common/grpc_credentials.h"

// Named servers with what it takes to reach them, in
// $XDG_CONFIG_HOME/quantry/config.json (else ~/.config). The Python client
// reads the same file. It names files with secrets and holds none.
namespace quantry::cli {

struct ServerContext {
  std::string server = {};  // HOST:PORT
  std::string tls_ca = {};
  std::string client_cert = {};
  std::string client_key = {};
  std::string token_file = {};
  std::string tenant = {};
};

struct Contexts {
  std::string current;  // "" = none
  std::map<std::string, ServerContext> all;
};

// "" when neither XDG_CONFIG_HOME nor HOME is set.
std::string ContextsPath(const Environment& env);
// None when there is no file. INVALID_ARGUMENT names the file and what is wrong.
absl::StatusOr<Contexts> LoadContexts(const Environment& env);
// Replaces the file whole, mode 0600.
absl::Status SaveContexts(const Environment& env, const Contexts& contexts);

// 1 to 63 of a-z, A-Z, 0-9, ".", "_" and "-". INVALID_ARGUMENT.
absl::Status CheckContextName(const std::string& name);

// HOST:PORT, or a target with a scheme of gRPC's ("unix:/run/q.sock"). INVALID_ARGUMENT names
// `source`, where it was said. Nothing said is fine.
absl::Status CheckServerAddress(std::string_view source, const std::string& target);

// Fills what the flags left out: the environment first, then the context. A
// token goes to the server it is for: a context that is named (--context, else
// QUANTRY_CONTEXT unless --server is given) brings its server, and the current
// one stands aside when --server or QUANTRY_SERVER names one. INVALID_ARGUMENT
// for two servers, no HOST:PORT, an unknown context or credentials that cannot be used.
absl::Status ResolveGlobal(const Environment& env, GlobalOptions* global);

ClientSecurity SecurityOf(const GlobalOptions& global);

}  // namespace quantry::cli
