#include <cstdio>

#include "absl/strings/str_cat.h"
#include "common/config_fields.h"
#include "common/config_loader.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/util/json_util.h"

extern char** environ;

namespace quantry {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string ConfigHelp(const ProgramInfo& program, const Message& config) {
  std::string text = absl::StrCat(std::string(program.name), ": ", std::string(program.summary),
                                  "\n\nUsage: ", std::string(program.name),
                                  " [--name=value]...\n\n"
                                  "Each flag is also an environment variable (--data-dir is "
                                  "QUANTRY_DATA_DIR; lists are\n\":\"-separated) and a key of the "
                                  "JSON file (\"data_dir\"). Flags beat the environment,\nwhich "
                                  "beats the file.\n\n");
  const Descriptor& type = *config.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string fallback = FieldDefault(field);
    absl::StrAppend(&text, "  --", FlagName(field.name()), "\n      ", FieldHelp(field));
    if (!fallback.empty()) absl::StrAppend(&text, " (default ", fallback, ")");
    absl::StrAppend(&text, "\n");
  }
  absl::StrAppend(&text,
                  "  --config FILE\n      JSON configuration file\n"
                  "  --check-config\n      print the effective configuration; exit 0, or 2 when it "
                  "is wrong\n"
                  "  --version, --help\n");
  return text;
}

std::string ConfigJson(const Message& config) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(config, &json, options).ok()) return "{}\n";
  return json;
}

std::optional<int> LoadConfigOrExit(const ProgramInfo& program, int argc, char** argv,
                                    Message* config,
                                    const std::function<absl::Status(Message*)>& finish) {
  ConfigSources sources;
  for (int i = 1; i < argc; ++i) sources.args.emplace_back(argv[i]);
  for (char** entry = environ; *entry != nullptr; ++entry) sources.environment.emplace_back(*entry);
  const auto command = LoadConfig(sources, config);
  absl::Status status = command.status();
  if (status.ok() && *command == ConfigCommand::kHelp) {
    std::fputs(ConfigHelp(program, *config).c_str(), stdout);
    return 0;
  }
  if (status.ok() && *command == ConfigCommand::kVersion) {
    std::printf("%.*s %s\n", static_cast<int>(program.name.size()), program.name.data(),
                QUANTRY_VERSION);
    return 0;
  }
  if (status.ok()) status = finish(config);
  if (!status.ok()) {
    std::fprintf(stderr, "%.*s: %s\n", static_cast<int>(program.name.size()), program.name.data(),
                 std::string(status.message()).c_str());
    return 2;
  }
  if (*command != ConfigCommand::kCheck) return std::nullopt;
  std::fputs(ConfigJson(*config).c_str(), stdout);
  return 0;
}

}  // namespace quantry
