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

// The deepest command the arguments name, and its words as a user types them.
struct Named {
  const CLI::App* app;
  std::string path;
};

Named NamedCommand(const CLI::App& root, const std::vector<std::string>& arguments) {
  Named named{&root, root.get_name()};
  for (const std::string& word : arguments) {
    const auto found =
        named.app->get_subcommands([&](const CLI::App* a) { return a->check_name(word); });
    if (found.empty()) continue;
    named.app = found.front();
    named.path += " " + word;
  }
  return named;
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* one : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(one->get_name());
  }
  return names;
}

// The command's option of that name, or that of all commands; null when there is none.
const CLI::Option* OptionNamed(const CLI::App& root, const CLI::App& command,
                               const std::string& name) {
  const CLI::Option* option = command.get_option_no_throw(name);
  return option != nullptr ? option : root.get_option_no_throw(name);
}

bool TakesWholeNumber(const CLI::Option& option) {
  const std::string type = option.get_type_name();  // with what its checks want
  return type == "N" || type.rfind("N:", 0) == 0;
}

// "--bits: wanted a whole number, got \"four\"" for CLI11's "Could not convert: --bits = four"; ""
// for other errors.
std::string NotANumber(const CLI::App& root, const CLI::App& command, const std::string& error) {
  constexpr std::string_view kBegin = "Could not convert: ";
  const size_t equals = error.find(" = ");
  if (error.rfind(kBegin, 0) != 0 || equals == std::string::npos) return "";
  const std::string name = error.substr(kBegin.size(), equals - kBegin.size());
  const std::string got = error.substr(equals + 3);
  const CLI::Option* option = OptionNamed(root, command, name);
  std::string wanted = "a number";
  if (option != nullptr && TakesWholeNumber(*option)) {
    const bool digits = got.find_first_not_of("0123456789") == std::string::npos;
    wanted = digits ? "a smaller number" : "a whole number";
  }
  return Cat(name, ": wanted ", wanted, ", got \"", got, "\"");
}

// What is wrong with the arguments, in our words where CLI11's would puzzle.
std::string ParseMessage(const CLI::App& root, const CLI::ParseError& error,
                         const std::vector<std::string>& arguments) {
  if (arguments.empty()) return error.what();
  if (root.get_subcommands().empty() && arguments[0][0] != '-') {
    return Cat("no command \"", arguments[0], "\": wanted one of ",
               CommaSeparated(CommandNames(root)));
  }
  const Named named = NamedCommand(root, arguments);
  const std::string number = NotANumber(root, *named.app, error.what());
  if (!number.empty()) return number;
  const std::vector<std::string> names = CommandNames(*named.app);
  if (names.empty() || named.app == &root) return error.what();
  return Cat("wanted ", named.path, " and one of ", CommaSeparated(names), ": ", error.what());
}

// Flags of the command and of all commands whose names hold `word`, or lie within it.
std::vector<std::string> FlagsLike(const CLI::App& root, const CLI::App& command,
                                   const std::string& word) {
  std::vector<std::string> flags;
  for (const CLI::App* app : {&command, &root}) {
    for (const CLI::Option* option : app->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        const bool alike = name.find(word) != std::string::npos ||
                           (name.size() > 3 && word.find(name) != std::string::npos);
        if (alike) flags.push_back("--" + name);
      }
    }
  }
  return flags;
}

// "no flag --samples; there is --calibration-samples"; "" when every flag is known.
std::string UnknownFlag(const CLI::App& root, const std::vector<std::string>& arguments) {
  const CLI::App* app = NamedCommand(root, arguments).app;
  for (const std::string& argument : arguments) {
    const std::string name = argument.substr(0, argument.find('='));
    if (name == "--") return "";
    if (name.rfind("--", 0) != 0 || OptionNamed(root, *app, name) != nullptr) continue;
    const std::vector<std::string> alike = FlagsLike(root, *app, name.substr(2));
    return Cat("no flag ", name, alike.empty() ? "" : "; there is ", CommaSeparated(alike));
  }
  return "";
}

// "--wait=maybe", where --wait takes true, false or nothing; "" when there is none.
std::string BadFlag(const CLI::App& root, const std::vector<std::string>& arguments) {
  const CLI::App* app = NamedCommand(root, arguments).app;
  for (const std::string& argument : arguments) {
    const std::string name = argument.substr(0, argument.find('='));
    const CLI::Option* option = OptionNamed(root, *app, name);
    if (option == nullptr || name == argument) continue;
    if (option->get_expected_max() != 0 && option->get_type_size_max() != 0) continue;
    try {
      CLI::detail::to_flag_value(argument.substr(name.size() + 1));
    } catch (const std::exception&) {
      return argument;
    }
  }
  return "";
}

std::string FlagWanted(const std::string& got) {
  return Cat("wanted true, false or no value for a flag, got \"", got, "\"");
}

int BadUsage(const CLI::App& app, const std::string& message,
             const std::vector<std::string>& arguments, Environment& env) {
  const absl::Status status = WithNext(
      absl::InvalidArgumentError(message),
      Cat("`", NamedCommand(app, arguments).path, " --help` explains the flags with examples"));
  PrintError(status, WantsJson(arguments), env);
  return static_cast<int>(ExitCode::kUsage);
}

int ParseFailed(const CLI::App& app, const CLI::ParseError& error,
                const std::vector<std::string>& arguments, Environment& env) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
    std::ostringstream ignored;
    return app.exit(error, env.out, ignored);  // --help
  }
  const std::string flag = BadFlag(app, arguments);
  if (!flag.empty()) return BadUsage(app, FlagWanted(flag), arguments, env);
  const bool extras = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError);
  const std::string unknown = extras ? UnknownFlag(app, arguments) : "";
  return BadUsage(app, unknown.empty() ? ParseMessage(app, error, arguments) : unknown, arguments,
                  env);
}

std::string WithoutLeadingZeros(const std::string& text) {
  const size_t first = text.find_first_not_of("+-");
  const bool other_base = first != std::string::npos && text[first] == '0' &&
                          first + 1 < text.size() && text[first + 1] != '.';
  return other_base ? Cat("wanted a decimal number without leading zeros, got \"", text, "\"") : "";
}

// CLI11 reads 010 as 8 and 0x10 as 16: a seed that is another one than the same digits in Python.
void TakeDecimalsAlone(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (TakesWholeNumber(*option)) option->check(WithoutLeadingZeros);
  }
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) {
    TakeDecimalsAlone(*command);
  }
}

// What a command throws is a bug of ours, or a disk that failed where none expected it.
absl::StatusOr<ExitCode> Run(const Action& chosen, bool asks_server, Environment& env,
                             GlobalOptions& global) {
  try {
    absl::Status status = asks_server ? ResolveGlobal(env, &global) : absl::OkStatus();
    if (!status.ok()) return status;
    Context context{env, global};
    return chosen(context);
  } catch (const std::exception& error) {
    return absl::InternalError(Cat("the command broke off: ", error.what()));
  }
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
  TakeDecimalsAlone(app);

  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return ParseFailed(app, error, arguments, env);
  } catch (const std::exception& error) {  // what std::stoll throws gets through the parser
    const std::string flag = BadFlag(app, arguments);
    return BadUsage(app, FlagWanted(flag.empty() ? error.what() : flag), arguments, env);
  }
  const std::string command = app.get_subcommands().front()->get_name();
  const bool asks =
      std::find(kWithoutServer.begin(), kWithoutServer.end(), command) == kWithoutServer.end();
  const absl::StatusOr<ExitCode> code = Run(chosen, asks, env, global);
  if (code.ok()) return static_cast<int>(*code);
  PrintError(code.status(), global.json(), env);
  return static_cast<int>(ExitCodeFor(code.status()));
}

}  // namespace quantry::cli
