#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/environment.h"
#include "client/cli/exit_codes.h"
#include "client/cli/json.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace quantry::cli {

// Flags every command takes, before or after its name.
struct GlobalOptions {
  // Filled by the flags, then by ResolveGlobal (contexts.h).
  std::string server = {};         // HOST:PORT; "" = address file, default
  std::string server_source = {};  // for messages
  std::string context = {};
  std::string tenant = {};
  std::string tls_ca = {};  // file, or "system"; "" = no TLS
  std::string client_cert = {};
  std::string client_key = {};
  std::string token_file = {};
  std::string output = "text";  // or "json"
  double timeout_s = 10;        // of one call; streams and uploads take what they need
  bool quiet = false;

  bool json() const { return output == "json"; }
};

// What a chosen command runs with.
struct Context {
  Environment& env;
  const GlobalOptions& global;
};

// A command's result on its output: `text`, or `json` where --json asks for it.
void PrintResult(Context& context, const Json& json, const std::string& text);

// The end of a command: an error to print, or the exit code after its own output.
using Action = std::function<absl::StatusOr<ExitCode>(Context&)>;

// Adds one command to the tree. When the user picks it, `chosen` is set.
using AddCommand = void (*)(CLI::App& app, Action& chosen);

void AddGlobalOptions(CLI::App& app, GlobalOptions& options);

// Makes `command` set `chosen` when parsed, and takes global flags after it.
void Bind(CLI::App& command, Action& chosen, Action action);

// The job a command is about, as the required positional argument.
void AddJobArgument(CLI::App& command, std::string& job);

// --help as people read it: wrapped, without the parser's own type words.
void UseHelpFormat(CLI::App& app);

// Only these words; they show in --help and in completion.
CLI::Option* Choices(CLI::Option* option, std::vector<std::string> words);

// 31 years. Clocks count nanoseconds in 64 bits: ten times as long is past their end.
inline constexpr double kMostSeconds = 1e9;

// For CLI::Option::check: says what is wrong with a flag's value, "" = nothing.
using ValueCheck = std::function<std::string(const std::string&)>;
ValueCheck Positive();            // a number above 0
ValueCheck PositiveSeconds();     // above 0, at most kMostSeconds
ValueCheck NotNegativeSeconds();  // 0 or more, at most kMostSeconds
ValueCheck Hours();               // a minute to ten years
ValueCheck NotNegative();         // 0 or more

// "128", "-1" or "channel" (= -1). INVALID_ARGUMENT otherwise.
absl::StatusOr<int> ParseGroupSize(std::string_view text);

// {"k=v", ...} as a map. INVALID_ARGUMENT without "=", with an empty or a
// repeated key.
absl::StatusOr<std::map<std::string, std::string>> ParseLabels(
    const std::vector<std::string>& pairs);

}  // namespace quantry::cli
