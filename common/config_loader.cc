#include "common/config_loader.h"

#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/config_fields.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"

namespace quantry {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// A configuration file larger than this is not one.
constexpr size_t kMaxFileBytes = 1 << 20;
// A typo of a known environment variable is within this distance.
constexpr size_t kTypoDistance = 2;

using Values = std::map<const FieldDescriptor*, std::vector<std::string>>;

// What the flags say, before it is applied.
struct Flags {
  Values values;
  std::string config_file;
  ConfigCommand command = ConfigCommand::kRun;
};

std::vector<std::string> FieldNames(const Descriptor& type,
                                    const std::function<std::string(std::string_view)>& spell) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) names.push_back(spell(type.field(i)->name()));
  return names;
}

std::string Hint(std::string_view name, const std::vector<std::string>& known,
                 std::string_view prefix) {
  const std::string nearest = Nearest(name, known, name.size() / 2 + 1);
  if (nearest.empty()) return "";
  return absl::StrCat("; did you mean ", std::string(prefix), nearest, "?");
}

absl::Status Apply(const Values& values, std::string_view layer,
                   const std::function<std::string(std::string_view)>& spell, Message* config) {
  for (const auto& [field, texts] : values) {
    absl::Status status = SetFieldFromText(*field, texts, config);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(layer), " ", spell(field->name()), ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyDefaults(Message* config) {
  Values values;
  const Descriptor& type = *config->GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const std::string text = FieldDefault(*type.field(i));
    if (!text.empty()) values[type.field(i)] = {text};
  }
  return Apply(values, "default of", FlagName, config);
}

// "--name=value", "--name value", "--flag" for bool.
absl::StatusOr<Flags> ParseFlags(const std::vector<std::string>& args, const Descriptor& type) {
  Flags flags;
  std::map<std::string, const FieldDescriptor*> fields;
  for (int i = 0; i < type.field_count(); ++i) {
    fields[FlagName(type.field(i)->name())] = type.field(i);
  }
  std::vector<std::string> known = FieldNames(type, FlagName);
  known.insert(known.end(), {"help", "version", "config", "check-config"});
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg.rfind("--", 0) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("wanted flags of the form --name=value, got '", arg, "'; see --help"));
    }
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    const auto field = fields.find(name);
    const bool switch_flag = name == "help" || name == "version" || name == "check-config";
    if (field == fields.end() && name != "config" && !switch_flag) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag --", name, Hint(name, known, "--")));
    }
    const bool is_bool =
        field != fields.end() && field->second->cpp_type() == FieldDescriptor::CPPTYPE_BOOL;
    std::string value = "true";
    if (equals != std::string::npos) {
      value = arg.substr(equals + 1);
    } else if (!is_bool && !switch_flag) {
      if (++i == args.size()) {
        return absl::InvalidArgumentError(absl::StrCat("flag --", name, " needs a value"));
      }
      value = args[i];
    }
    if (name == "help") flags.command = ConfigCommand::kHelp;
    if (name == "version") flags.command = ConfigCommand::kVersion;
    if (name == "check-config" && flags.command == ConfigCommand::kRun) {
      flags.command = ConfigCommand::kCheck;
    }
    if (name == "config") flags.config_file = value;
    if (field == fields.end()) continue;
    std::vector<std::string>& values = flags.values[field->second];
    if (!field->second->is_repeated()) values.clear();  // the last one counts
    values.push_back(value);
  }
  return flags;
}

// Fields of every configuration message: programs share one environment.
std::vector<std::string> KnownVariables(const Descriptor& type) {
  std::vector<std::string> known = {"QUANTRY_CONFIG"};
  for (int i = 0; i < type.file()->message_type_count(); ++i) {
    const auto names = FieldNames(*type.file()->message_type(i), EnvironmentName);
    known.insert(known.end(), names.begin(), names.end());
  }
  return known;
}

absl::StatusOr<Values> ParseEnvironment(const std::vector<std::string>& environment,
                                        const Descriptor& type, std::string* config_file) {
  std::map<std::string, const FieldDescriptor*> fields;
  for (int i = 0; i < type.field_count(); ++i) {
    fields[EnvironmentName(type.field(i)->name())] = type.field(i);
  }
  const std::vector<std::string> known = KnownVariables(type);
  Values values;
  for (const std::string& entry : environment) {
    if (entry.rfind("QUANTRY_", 0) != 0) continue;
    const size_t equals = entry.find('=');
    const std::string name = entry.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : entry.substr(equals + 1);
    if (name == "QUANTRY_CONFIG" && config_file->empty()) *config_file = value;
    if (const auto field = fields.find(name); field != fields.end()) {
      if (!field->second->is_repeated()) {
        values[field->second] = {value};
      } else {
        values[field->second] = absl::StrSplit(value, ':', absl::SkipEmpty());
      }
      continue;
    }
    const std::string nearest = Nearest(name, known, kTypoDistance);
    if (!nearest.empty() && nearest != name) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown environment variable ", name, "; did you mean ", nearest, "?"));
    }
  }
  return values;
}

absl::StatusOr<std::string> JsonText(const google::protobuf::Value& value) {
  switch (value.kind_case()) {
    case google::protobuf::Value::kStringValue:
      return value.string_value();
    case google::protobuf::Value::kBoolValue:
      return std::string(value.bool_value() ? "true" : "false");
    case google::protobuf::Value::kNumberValue: {
      std::ostringstream text;
      text.precision(17);
      text << value.number_value();
      return text.str();
    }
    default:
      return absl::InvalidArgumentError("wanted a string, number or boolean");
  }
}

absl::StatusOr<std::vector<std::string>> JsonTexts(const google::protobuf::Value& value) {
  std::vector<std::string> texts;
  const bool is_list = value.has_list_value();
  for (int i = 0; i < (is_list ? value.list_value().values_size() : 1); ++i) {
    auto text = JsonText(is_list ? value.list_value().values(i) : value);
    if (!text.ok()) return text.status();
    texts.push_back(*std::move(text));
  }
  return texts;
}

absl::StatusOr<std::string> ReadConfigFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open configuration file '", path, "'"));
  }
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("configuration file '", path, "' is larger than 1 MiB"));
  }
  return text;
}

absl::Status ApplyFile(const std::string& path, Message* config) {
  auto text = ReadConfigFile(path);
  if (!text.ok()) return text.status();
  google::protobuf::Struct object;
  const auto parsed = google::protobuf::util::JsonStringToMessage(*text, &object);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "configuration file '", path, "' is not a JSON object: ", parsed.message().as_string()));
  }
  const Descriptor& type = *config->GetDescriptor();
  Values values;
  for (const auto& [key, value] : object.fields()) {
    const FieldDescriptor* field = type.FindFieldByName(key);
    if (field == nullptr) {
      const auto known = FieldNames(type, [](std::string_view name) { return std::string(name); });
      return absl::InvalidArgumentError(
          absl::StrCat("unknown key \"", key, "\" in ", path, Hint(key, known, "")));
    }
    auto texts = JsonTexts(value);
    if (!texts.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " \"", key, "\": ", texts.status().message()));
    }
    values[field] = *std::move(texts);
  }
  return Apply(
      values, path,
      [](std::string_view name) { return absl::StrCat("\"", std::string(name), "\""); }, config);
}

}  // namespace

absl::StatusOr<ConfigCommand> LoadConfig(const ConfigSources& sources, Message* config) {
  const Descriptor& type = *config->GetDescriptor();
  auto flags = ParseFlags(sources.args, type);
  if (!flags.ok()) return flags.status();
  if (flags->command == ConfigCommand::kHelp || flags->command == ConfigCommand::kVersion) {
    return flags->command;
  }
  std::string file = flags->config_file;
  auto environment = ParseEnvironment(sources.environment, type, &file);
  if (!environment.ok()) return environment.status();
  config->Clear();
  absl::Status status = ApplyDefaults(config);
  if (status.ok() && !file.empty()) status = ApplyFile(file, config);
  if (status.ok()) status = Apply(*environment, "environment variable", EnvironmentName, config);
  if (status.ok()) {
    status = Apply(
        flags->values, "flag", [](std::string_view name) { return "--" + FlagName(name); }, config);
  }
  if (!status.ok()) return status;
  return flags->command;
}

}  // namespace quantry
