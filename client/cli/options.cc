#include "client/cli/options.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>

#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr size_t kNameColumns = 34;
constexpr size_t kTextColumns = 66;

// Breaks at blanks; CLI11 indents what follows a line end.
std::string Wrapped(const std::string& text) {
  std::string wrapped;
  size_t column = 0;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (column > 0 && column + 1 + word.size() > kTextColumns) {
      wrapped += '\n';
      column = 0;
    } else if (column > 0) {
      wrapped += ' ';
      ++column;
    }
    wrapped += word;
    column += word.size();
  }
  return wrapped;
}

class HelpFormat : public CLI::Formatter {
 public:
  HelpFormat() { column_width(kNameColumns); }

  // Checks (":POSITIVE") show in the error when they fail; choices show here.
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0 || option->get_expected_max() == 0) return "";
    std::string type = option->get_type_name();
    if (type.rfind(":{", 0) == 0) return " " + type.substr(1);
    return " " + type.substr(0, type.find(':'));
  }

  std::string make_option_desc(const CLI::Option* option) const override {
    return Wrapped(option->get_description());
  }
};

void AddGlobal(CLI::App& app, const char* names, std::string& value, const char* type,
               const char* help) {
  app.add_option(names, value, help)->type_name(type)->group("Global options");
}

void AddCredentialOptions(CLI::App& app, GlobalOptions& options) {
  AddGlobal(app, "--tls-ca,--ca", options.tls_ca, "FILE",
            "Speak TLS and trust the certificates of this PEM file; \"system\": those of this "
            "machine. Default: $QUANTRY_TLS_CA_FILE, else no TLS");
  AddGlobal(app, "--token-file", options.token_file, "FILE",
            "File with your token. Default: $QUANTRY_TOKEN_FILE");
  AddGlobal(app, "--client-cert", options.client_cert, "FILE",
            "PEM file with your certificate, for servers that take them (mTLS). Default: "
            "$QUANTRY_CLIENT_CERT_FILE");
  AddGlobal(app, "--client-key", options.client_key, "FILE",
            "PEM file with its key. Default: $QUANTRY_CLIENT_KEY_FILE");
}

// CLI11's own checks name the largest double there is, all 309 digits of it.
ValueCheck BoundedNumber(const char* wanted, bool (*fits)(double)) {
  return [wanted, fits](const std::string& text) {
    double value = 0;
    const bool good = CLI::detail::lexical_cast(text, value) && std::isfinite(value) && fits(value);
    return good ? std::string() : Cat("wanted ", wanted, ", got \"", text, "\"");
  };
}

// "1h" is no number of seconds.
ValueCheck BoundedSeconds(const char* wanted, bool (*fits)(double)) {
  return [bounded = BoundedNumber(wanted, fits)](const std::string& text) {
    double value = 0;
    if (CLI::detail::lexical_cast(text, value)) return bounded(text);
    return Cat("wanted a number of seconds, such as 3600 for an hour, got \"", text, "\"");
  };
}

}  // namespace

void PrintResult(Context& context, const Json& json, const std::string& text) {
  context.env.out << (context.global.json() ? Dump(json, context.env.out_is_terminal) : text);
}

void AddJobArgument(CLI::App& command, std::string& job) {
  command.add_option("JOB", job, "Job: its id, or its full name")->required()->type_name("JOB");
}

void UseHelpFormat(CLI::App& app) { app.formatter(std::make_shared<HelpFormat>()); }

void AddGlobalOptions(CLI::App& app, GlobalOptions& options) {
  AddGlobal(app, "--server", options.server, "HOST:PORT",
            "Server as HOST:PORT. Default: that of --context, else $QUANTRY_SERVER, else the "
            "current context's, else a server of yours on this machine, else 127.0.0.1:7070");
  AddGlobal(app, "--context", options.context, "NAME",
            "Server remembered by `quantry login`. Default: $QUANTRY_CONTEXT, else the "
            "current one");
  AddGlobal(app, "--tenant", options.tenant, "NAME",
            "Tenant whose jobs are meant. Default: $QUANTRY_TENANT, else the context's, else "
            "default");
  AddCredentialOptions(app, options);
  Choices(
      app.add_option("--output", options.output, "text for people; json: one JSON value on stdout"),
      {"text", "json"})
      ->group("Global options");
  app.add_option(
         "--timeout", options.timeout_s,
         "Seconds to wait for an answer to one call; at least 30 where the engine is asked, "
         "90 for a quote. Default: 10")
      ->check(PositiveSeconds())
      ->type_name("SECONDS")
      ->group("Global options");
  app.add_flag("--quiet", options.quiet, "No progress on stderr; lists print ids only")
      ->group("Global options");
}

void Bind(CLI::App& command, Action& chosen, Action action) {
  command.fallthrough();
  command.callback([&chosen, action = std::move(action)] { chosen = action; });
}

CLI::Option* Choices(CLI::Option* option, std::vector<std::string> words) {
  return option->check(CLI::IsMember(std::move(words), CLI::ignore_case))->type_name("");
}

ValueCheck Positive() {
  return BoundedNumber("a number above 0", [](double value) { return value > 0; });
}

ValueCheck PositiveSeconds() {
  return BoundedSeconds("seconds above 0, at most 1000000000",
                        [](double value) { return value > 0 && value <= kMostSeconds; });
}

ValueCheck NotNegativeSeconds() {
  return BoundedSeconds("0 seconds or more, at most 1000000000",
                        [](double value) { return value >= 0 && value <= kMostSeconds; });
}

ValueCheck Hours() {
  return BoundedNumber("hours from 0.017 (a minute) to 87600 (ten years), such as 168 for a week",
                       [](double value) { return value >= 1.0 / 60 && value <= 24.0 * 3650; });
}

ValueCheck NotNegative() {
  return BoundedNumber("0 or more", [](double value) { return value >= 0; });
}

absl::StatusOr<int> ParseGroupSize(std::string_view text) {
  if (text == "channel") return -1;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < -1 || value == 0) {
    return absl::InvalidArgumentError(
        Cat("--group-size: wanted a number of columns, or \"channel\" (-1) for one scale a row, "
            "got \"",
            text, "\""));
  }
  return value;
}

absl::StatusOr<std::map<std::string, std::string>> ParseLabels(
    const std::vector<std::string>& pairs) {
  std::map<std::string, std::string> labels;
  for (const std::string& pair : pairs) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(Cat("--label: wanted KEY=VALUE, got \"", pair, "\""));
    }
    if (!labels.emplace(pair.substr(0, equals), pair.substr(equals + 1)).second) {
      return absl::InvalidArgumentError(
          Cat("--label: \"", pair.substr(0, equals), "\" is given twice"));
    }
  }
  return labels;
}

}  // namespace quantry::cli
