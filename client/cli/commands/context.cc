#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/commands/commands.h"
#include "client/cli/connection.h"
#include "client/cli/contexts.h"
#include "client/cli/errors.h"
#include "client/cli/format.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

namespace fs = std::filesystem;

Json ContextJson(const Contexts& contexts, const std::string& name, const ServerContext& context) {
  Json json = {{"name", name}, {"current", name == contexts.current}, {"server", context.server}};
  const auto add = [&json](const char* key, const std::string& value) {
    if (!value.empty()) json[key] = value;
  };
  add("tenant", context.tenant);
  add("tls_ca", context.tls_ca);
  add("client_cert", context.client_cert);
  add("client_key", context.client_key);
  add("token_file", context.token_file);
  return json;
}

absl::StatusOr<ExitCode> RunList(Context& context) {
  auto contexts = LoadContexts(context.env);
  if (!contexts.ok()) return contexts.status();
  Json json = Json::array();
  std::vector<std::vector<std::string>> rows = {{"", "NAME", "SERVER", "TENANT", "TLS", "TOKEN"}};
  for (const auto& [name, one] : contexts->all) {
    json.push_back(ContextJson(*contexts, name, one));
    rows.push_back({name == contexts->current ? "*" : "", name, one.server,
                    one.tenant.empty() ? "default" : one.tenant, one.tls_ca.empty() ? "no" : "yes",
                    one.token_file.empty() ? "no" : "yes"});
  }
  const bool none = contexts->all.empty();
  PrintResult(context, json,
              none ? "no contexts; `quantry login HOST:PORT` makes one\n" : Table(rows));
  return ExitCode::kOk;
}

// The context named, else the current one.
absl::StatusOr<std::string> Chosen(const Contexts& contexts, const std::string& name) {
  const std::string& wanted = name.empty() ? contexts.current : name;
  if (wanted.empty()) {
    return WithNext(absl::NotFoundError("there is no current context"),
                    "name one; `quantry context list` shows them");
  }
  if (contexts.all.count(wanted) != 0) return wanted;
  return WithNext(absl::NotFoundError(Cat("no context \"", wanted, "\"")),
                  "`quantry context list` shows them, `quantry login` makes one");
}

absl::StatusOr<ExitCode> RunShow(Context& context, const std::string& name) {
  auto contexts = LoadContexts(context.env);
  if (!contexts.ok()) return contexts.status();
  auto chosen = Chosen(*contexts, name);
  if (!chosen.ok()) return chosen.status();
  const Json json = ContextJson(*contexts, *chosen, contexts->all[*chosen]);
  std::vector<std::pair<std::string, std::string>> fields;
  for (const auto& [key, value] : json.items()) {
    fields.emplace_back(key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  PrintResult(context, json, Fields(fields));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunUse(Context& context, const std::string& name) {
  auto contexts = LoadContexts(context.env);
  if (!contexts.ok()) return contexts.status();
  auto chosen = Chosen(*contexts, name);
  if (!chosen.ok()) return chosen.status();
  contexts->current = *chosen;
  if (absl::Status status = SaveContexts(context.env, *contexts); !status.ok()) return status;
  PrintResult(context, ContextJson(*contexts, *chosen, contexts->all[*chosen]),
              Cat("context ", *chosen, ": ", contexts->all[*chosen].server, "\n"));
  return ExitCode::kOk;
}

absl::StatusOr<ExitCode> RunDelete(Context& context, const std::string& name) {
  auto contexts = LoadContexts(context.env);
  if (!contexts.ok()) return contexts.status();
  auto chosen = Chosen(*contexts, name);
  if (!chosen.ok()) return chosen.status();
  contexts->all.erase(*chosen);
  if (contexts->current == *chosen) contexts->current.clear();
  if (absl::Status status = SaveContexts(context.env, *contexts); !status.ok()) return status;
  PrintResult(context, Json{{"deleted", *chosen}}, Cat("deleted context ", *chosen, "\n"));
  return ExitCode::kOk;
}

struct LoginOptions {
  std::string server;
  std::string name;
  bool check = true;
};

std::string Absolute(const std::string& path) {
  if (path.empty() || path == kSystemCas) return path;
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

// HOST of HOST:PORT, as a name.
std::string NameFor(const std::string& server) {
  std::string name = server.substr(0, server.rfind(':'));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '[' || c == ']' || c == ':'; }, '-');
  return name;
}

// Whether the server lets these credentials in, and to this tenant; one that is busy now is asked
// the second another time.
absl::Status AskServer(Connection& connection, const std::string& tenant, v1::ServerInfo* info) {
  absl::Status status = connection.Call(connection.jobs(), &Connection::Jobs::GetServerInfo,
                                        v1::GetServerInfoRequest(), info);
  if (!status.ok()) return status;
  v1::ListQuantizationJobsRequest request;
  request.set_parent(tenant);
  request.set_page_size(1);
  v1::ListQuantizationJobsResponse page;
  status =
      connection.Call(connection.jobs(), &Connection::Jobs::ListQuantizationJobs, request, &page);
  return IsBreak(status) ? absl::OkStatus() : status;
}

absl::StatusOr<ExitCode> RunLogin(Context& context, const LoginOptions& options) {
  absl::Status status = CheckServerAddress("ENDPOINT", options.server);
  if (!status.ok()) return status;
  GlobalOptions global = context.global;
  if (!global.server.empty() && global.server != options.server) {
    return absl::InvalidArgumentError(Cat("wanted one server, got two: ENDPOINT is ",
                                          options.server, ", --server names ", global.server));
  }
  global.server = options.server;
  if (status = ResolveGlobal(context.env, &global); !status.ok()) return status;
  const absl::StatusOr<std::string> tenant = ResolveTenant(global.tenant);
  if (!tenant.ok()) return tenant.status();
  const std::string name = options.name.empty() ? NameFor(options.server) : options.name;
  if (status = CheckContextName(name); !status.ok()) return status;
  v1::ServerInfo info;
  if (options.check) {
    Connection connection(context.env, global);
    if (status = AskServer(connection, *tenant, &info); !status.ok()) return status;
  }
  auto contexts = LoadContexts(context.env);
  if (!contexts.ok()) return contexts.status();
  contexts->all[name] = {.server = options.server,
                         .tls_ca = Absolute(global.tls_ca),
                         .client_cert = Absolute(global.client_cert),
                         .client_key = Absolute(global.client_key),
                         .token_file = Absolute(global.token_file),
                         .tenant = global.tenant};
  contexts->current = name;
  if (status = SaveContexts(context.env, *contexts); !status.ok()) return status;
  Json json = ContextJson(*contexts, name, contexts->all[name]);
  if (options.check) json["version"] = info.version();
  PrintResult(context, json,
              Cat("context ", name, ": ", options.server,
                  options.check ? Cat(", quantryd ", info.version()) : std::string(), "\n"));
  return ExitCode::kOk;
}

void AddNamed(CLI::App& family, const char* verb, const char* help, bool required, Action& chosen,
              absl::StatusOr<ExitCode> (*run)(Context&, const std::string&)) {
  CLI::App* command = family.add_subcommand(verb, help);
  auto name = std::make_shared<std::string>();
  command->add_option("NAME", *name, "Context, as `quantry context list` shows it")
      ->required(required)
      ->type_name("NAME");
  Bind(*command, chosen, [name, run](Context& context) { return run(context, *name); });
}

}  // namespace

void AddLogin(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("login", "Remember a server and how to reach it, as the current context");
  auto options = std::make_shared<LoginOptions>();
  command->add_option("ENDPOINT", options->server, "The server's tenant port")
      ->required()
      ->type_name("HOST:PORT");
  command->add_option("--name", options->name, "Name of the context. Default: the host")
      ->type_name("NAME");
  command->add_flag("!--no-check", options->check,
                    "Do not ask the server whether it lets you in to the tenant");
  command->footer(
      "\nThe global options --tls-ca, --token-file, --client-cert, --client-key and --tenant are\n"
      "kept: the names of the files, never what is in them. A renewed token counts at once.\n"
      "\nExamples:\n"
      "  quantry login quantry.example.org:7070 --tls-ca system --token-file ~/.quantry-token\n"
      "  quantry login 10.0.0.5:7070 --name lab --tls-ca ca.pem --client-cert me.pem "
      "--client-key me.key --tenant acme\n");
  Bind(*command, chosen, [options](Context& context) { return RunLogin(context, *options); });
}

void AddContext(CLI::App& app, Action& chosen) {
  CLI::App* family = app.add_subcommand("context", "Servers remembered by `quantry login`");
  family->footer(
      "\nCommands use the current context unless --server, QUANTRY_SERVER, --context or\n"
      "QUANTRY_CONTEXT say otherwise; flags and variables beat what the context says.\n"
      "\nExamples:\n  quantry context list\n  quantry context use lab\n"
      "  quantry list --context lab\n");
  family->require_subcommand(1);
  family->fallthrough();
  Bind(*family->add_subcommand("list", "All contexts; * marks the current one"), chosen, RunList);
  AddNamed(*family, "use", "Make one the current context", true, chosen, RunUse);
  AddNamed(*family, "show", "One context. Default: the current one", false, chosen, RunShow);
  AddNamed(*family, "delete", "Forget one; the files it names stay", true, chosen, RunDelete);
}

}  // namespace quantry::cli
