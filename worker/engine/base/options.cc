#include "worker/engine/base/options.h"

#include <algorithm>
#include <charconv>

#include "worker/engine/base/strings.h"

namespace quantry::engine {

Options::Options(int argc, char** argv, const std::vector<std::string>& known,
                 const std::vector<std::string>& required) {
  for (int i = 1; i < argc; i += 2) {
    const std::string argument = argv[i];
    const std::string name = argument.starts_with("--") ? argument.substr(2) : std::string();
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      throw UsageError(StrCat("unknown option '", argument, "'; known are --",
                              Join(known, known.size(), ", --")));
    }
    if (i + 1 >= argc) throw UsageError(StrCat("--", name, " wants a value"));
    values_[name] = argv[i + 1];
  }
  for (const std::string& name : required) {
    if (values_.count(name) == 0) throw UsageError(StrCat("--", name, " is missing"));
  }
}

std::string Options::Text(const std::string& name, const std::string& fallback) const {
  const auto it = values_.find(name);
  return it == values_.end() ? fallback : it->second;
}

int64_t Options::Integer(const std::string& name, int64_t low, int64_t high,
                         int64_t fallback) const {
  const auto it = values_.find(name);
  if (it == values_.end()) return fallback;
  const std::string& text = it->second;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  if (!whole || value < low || value > high) {
    throw UsageError(
        StrCat("--", name, " must be an integer from ", low, " to ", high, ", got '", text, "'"));
  }
  return value;
}

}  // namespace quantry::engine
