// Fills a configuration message of proto/quantry/v1/config.proto from, in
// falling precedence: flags, environment QUANTRY_*, the JSON file named by
// --config (or QUANTRY_CONFIG), the defaults written in the proto.
//
// Every field of the message is a flag (--data-dir), an environment variable
// (QUANTRY_DATA_DIR) and a JSON key ("data_dir"); nothing else is accepted. A
// wrong name is an error that says which known name is nearest. Environment
// variables of other quantry programs are left alone; one that is a near miss
// of a known name is an error, because a typo would otherwise be silent.
//
// No threads, no state; nothing is written. Errors are INVALID_ARGUMENT and
// name the layer ("flag", "environment", file name) a bad value came from.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace google::protobuf {
class Message;
}

namespace quantry {

// Who is asking; for --help and --version.
struct ProgramInfo {
  std::string_view name;     // "quantryd"
  std::string_view summary;  // one line
};

struct ConfigSources {
  std::vector<std::string> args = {};         // without argv[0]
  std::vector<std::string> environment = {};  // "KEY=VALUE"
};

// What the command line asks for.
enum class ConfigCommand { kRun, kHelp, kVersion, kCheck };

// Fills `config`. With kHelp and kVersion the message is left alone.
absl::StatusOr<ConfigCommand> LoadConfig(const ConfigSources& sources,
                                         google::protobuf::Message* config);

// The text of --help: every flag with its default and description.
std::string ConfigHelp(const ProgramInfo& program, const google::protobuf::Message& config);

// The effective configuration as JSON, every field present.
std::string ConfigJson(const google::protobuf::Message& config);

// The whole life of a command line for main(): loads `config`, lets `finish`
// fill computed defaults and check values, answers --help, --version and
// --check-config. Returns the exit status when the program should end now (0,
// or 2 after an error printed to stderr), nothing when it should run.
std::optional<int> LoadConfigOrExit(
    const ProgramInfo& program, int argc, char** argv, google::protobuf::Message* config,
    const std::function<absl::Status(google::protobuf::Message*)>& finish);

}  // namespace quantry
