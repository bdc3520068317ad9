#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace quantry::engine {

// "--name value" pairs of a sub-command. Unknown names, a name without a value
// and a missing required one are UsageErrors.
class Options {
 public:
  // argv[0] is the sub-command. Each entry of `known` is a name without dashes.
  Options(int argc, char** argv, const std::vector<std::string>& known,
          const std::vector<std::string>& required);

  std::string Text(const std::string& name, const std::string& fallback) const;
  int64_t Integer(const std::string& name, int64_t low, int64_t high, int64_t fallback) const;

 private:
  std::map<std::string, std::string> values_;
};

// Wrong usage, said on stderr by the tool which catches it.
class UsageError {
 public:
  explicit UsageError(std::string text) : message(std::move(text)) {}
  std::string message;
};

}  // namespace quantry::engine
