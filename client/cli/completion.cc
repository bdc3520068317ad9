#include "client/cli/completion.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <vector>

#include "client/cli/text.h"

namespace quantry::cli {
namespace {

constexpr char kHead[] = R"SH(# bash completion of quantry. Load it with
#   source <(quantry completion bash)
_quantry_jobs() {
  local jobs
  jobs=$("${COMP_WORDS[0]}" list --quiet --limit 200 --timeout 1 2>/dev/null)
  COMPREPLY=($(compgen -W "$jobs" -- "$1"))
}
_quantry() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path='' i
  # "=" is a word of its own in --flag=value.
  if [[ $cur == = ]]; then cur=''
  elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}
  fi
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$path/${COMP_WORDS[i]}" in
)SH";

constexpr char kTail[] = R"SH(}
complete -F _quantry quantry
)SH";

std::string Join(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

std::vector<const CLI::App*> Children(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

// Every command with its path: "" for the root, "/workers/list".
void Collect(const CLI::App& app, const std::string& path,
             std::vector<std::pair<std::string, const CLI::App*>>& commands) {
  commands.emplace_back(path, &app);
  for (const CLI::App* child : Children(app)) {
    Collect(*child, path + "/" + child->get_name(), commands);
  }
}

std::vector<std::string> LongNames(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

// The words of a {a,b,c} in the option's type, which IsMember puts there.
std::string ChoicesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t open = type.find('{');
  const size_t close = type.find('}', open);
  if (open == std::string::npos || close == std::string::npos) return "";
  std::string words = type.substr(open + 1, close - open - 1);
  std::replace(words.begin(), words.end(), ',', ' ');
  return words;
}

// What bash runs to complete a value of this option; "" when nothing is known.
std::string ValueAction(const CLI::Option& option) {
  if (const std::string words = ChoicesOf(option); !words.empty()) {
    return Cat("COMPREPLY=($(compgen -W '", words, "' -- \"$cur\"))");
  }
  const std::string type = option.get_type_name();
  // mapfile: a name with blanks is one name.
  if (type == "FILE") {
    return "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); compopt -o filenames";
  }
  if (type == "DIR") {
    return "mapfile -t COMPREPLY < <(compgen -d -- \"$cur\"); compopt -o filenames";
  }
  if (type == "JOB") return "_quantry_jobs \"$cur\"";
  if (type == "JOB|DIR") {
    return "_quantry_jobs \"$cur\"; mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "
           "\"$cur\"); compopt -o filenames";
  }
  return "";
}

std::string PathCases(const std::vector<std::pair<std::string, const CLI::App*>>& commands) {
  std::vector<std::string> paths;
  for (const auto& [path, app] : commands) {
    if (!path.empty()) paths.push_back(path);
  }
  return Cat("      ", Join(paths, "|"), ") path+=\"/${COMP_WORDS[i]}\" ;;\n    esac\n  done\n");
}

// Options that take a value: after one of them only its values make sense.
std::string ValueCases(const std::vector<std::pair<std::string, const CLI::App*>>& commands) {
  std::string text = "  case \"$path $prev\" in\n";
  for (const auto& [path, app] : commands) {
    for (const CLI::Option* option : app->get_options()) {
      const std::vector<std::string> names = LongNames(*option);
      if (names.empty() || option->get_expected_max() == 0 || option->get_type_size_max() == 0) {
        continue;
      }
      std::vector<std::string> patterns;
      // Options of the root are taken after every command.
      for (const std::string& name : names) {
        patterns.push_back(path.empty() ? Cat("*' ", name, "'") : Cat("'", path, " ", name, "'"));
      }
      text += Cat("    ", Join(patterns, "|"), ") ", ValueAction(*option), "; return ;;\n");
    }
  }
  // "case x) ; return" is no bash.
  for (size_t at; (at = text.find(") ; return")) != std::string::npos;) text.erase(at + 2, 2);
  return text + "  esac\n";
}

std::string OptionCases(const std::vector<std::pair<std::string, const CLI::App*>>& commands) {
  std::string text = "  case \"$path\" in\n";
  std::vector<std::string> global;
  for (const auto& [path, app] : commands) {
    std::vector<std::string> words;
    std::string positional;
    for (const CLI::Option* option : app->get_options()) {
      const std::vector<std::string> names = LongNames(*option);
      words.insert(words.end(), names.begin(), names.end());
      if (names.empty() && positional.empty()) positional = ValueAction(*option);
    }
    if (path.empty()) {
      global = words;
    } else {
      words.insert(words.end(), global.begin(), global.end());
    }
    std::vector<std::string> names;
    for (const CLI::App* child : Children(*app)) names.push_back(child->get_name());
    if (!names.empty()) {
      positional = Cat("COMPREPLY=($(compgen -W '", Join(names, " "), "' -- \"$cur\"))");
    }
    text += Cat("    '", path, "')\n      if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W '",
                Join(words, " "), "' -- \"$cur\"))\n      else ",
                positional.empty() ? ":" : positional, "\n      fi ;;\n");
  }
  return text + "  esac\n";
}

}  // namespace

std::string BashCompletion(const CLI::App& root) {
  std::vector<std::pair<std::string, const CLI::App*>> commands;
  Collect(root, "", commands);
  return kHead + PathCases(commands) + ValueCases(commands) + OptionCases(commands) + kTail;
}

}  // namespace quantry::cli
