#include "client/cli/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "client/cli/commands/commands.h"
#include "client/cli/contexts.h"
#include "client/cli/errors.h"
#include "client/cli/exit_codes.h"
#include "client/cli/json.h"
#include "client/cli/options.h"
#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr std::array<AddCommand, 24> kCommands = {
    AddSubmit,  AddQuote,  AddGet,   AddList,   AddWatch,  AddEvents,  AddCancel,     AddRetry,
    AddDelete,  AddUpdate, AddPull,  AddExport, AddReport, AddCompare, AddMethods,    AddServerInfo,
    AddWorkers, AddQueue,  AddQuota, AddGc,     AddLogin,  AddContext, AddCompletion, AddVersion};

// Commands that ask no server, or choose theirs themselves.
constexpr std::array kWithoutServer = {std::string_view("login"), std::string_view("context"),
                                       std::string_view("completion"), std::string_view("version")};

constexpr char kFooter[] = R"(
Examples:
  quantry submit ./model --method awq --bits 4 --calibration train.txt --evaluation test.txt --wait
  quantry list --state running
  quantry watch my-job
  quantry pull my-job ./model-w4
  quantry report my-job

`quantry COMMAND --help` explains a command with examples. Every command takes --output json.
Exit codes: 0 succeeded, 1 job failed, 2 usage or invalid spec, 3 cancelled, 4 not found,
5 denied, 6 quota, 7 server unreachable, 8 wait timed out (the job goes on), 130 interrupted.)";

void PrintError(const absl::Status& status, bool json, Environment& env) {
  const ErrorReport report = Describe(status);
  env.err << ErrorText(report) << std::flush;
  if (json) env.out << Dump({{"error", ErrorJson(report)}}, env.out_is_terminal);
}

// Flags that did not parse may have hidden --output from the parser.
bool WantsJson(const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--output=json") return true;
    if (arguments[i] == "--output" && i + 1 < arguments.size() && arguments[i + 1] == "json") {
      return true;
    }
  }
  return false;
}

// The deepest command the arguments name, for the pointer to its --help.
std::string CommandPath(const CLI::App& root, const std::vector<std::string>& arguments) {
  std::string path = root.get_name();
  const CLI::App* app = &root;
  for (const std::string& word : arguments) {
    const auto found = app->get_subcommands([&](const CLI::App* a) { return a->check_name(word); });
    if (found.empty()) continue;
    app = found.front();
    path += " " + word;
  }
  return path;
}

// What is wrong with the arguments, in our words where CLI11's would puzzle.
std::string ParseMessage(const CLI::App& root, const CLI::ParseError& error,
                         const std::vector<std::string>& arguments) {
  if (!root.get_subcommands().empty() || arguments.empty() || arguments[0][0] == '-') {
    return error.what();
  }
  std::string names;
  for (const CLI::App* command : root.get_subcommands([](const CLI::App*) { return true; })) {
    names += (names.empty() ? "" : ", ") + command->get_name();
  }
  return Cat("no command \"", arguments[0], "\": wanted one of ", names);
}

int ParseFailed(const CLI::App& app, const CLI::ParseError& error,
                const std::vector<std::string>& arguments, Environment& env) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
    std::ostringstream ignored;
    return app.exit(error, env.out, ignored);  // --help
  }
  const absl::Status status =
      WithNext(absl::InvalidArgumentError(ParseMessage(app, error, arguments)),
               Cat("`", CommandPath(app, arguments), " --help` explains the flags with examples"));
  PrintError(status, WantsJson(arguments), env);
  return static_cast<int>(ExitCode::kUsage);
}

}  // namespace

int RunCli(const std::vector<std::string>& arguments, Environment& env) {
  CLI::App app("Quantization as a service: submit a checkpoint, get a measured low-bit artifact.",
               "quantry");
  UseHelpFormat(app);
  app.footer(kFooter);
  app.require_subcommand(1);
  GlobalOptions global;
  AddGlobalOptions(app, global);
  Action chosen;
  for (const AddCommand add : kCommands) add(app, chosen);

  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return ParseFailed(app, error, arguments, env);
  }
  const std::string command = app.get_subcommands().front()->get_name();
  const bool asks =
      std::find(kWithoutServer.begin(), kWithoutServer.end(), command) == kWithoutServer.end();
  Context context{env, global};
  absl::StatusOr<ExitCode> code = ExitCode::kOk;
  if (absl::Status status = asks ? ResolveGlobal(env, &global) : absl::OkStatus(); !status.ok()) {
    code = status;
  } else {
    code = chosen(context);
  }
  if (code.ok()) return static_cast<int>(*code);
  PrintError(code.status(), global.json(), env);
  return static_cast<int>(ExitCodeFor(code.status()));
}

}  // namespace quantry::cli
