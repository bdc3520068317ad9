#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace quantry::engine {

// A JSON object that is read field by field and then closed: a field nobody
// asked for is an error, so a misspelt option never passes silently. All
// errors are UserError INVALID_SPEC and name the field's whole path
// ("method.awq.grid.bits"). Absent and null fields give the default. Does not
// own the JSON.
class JsonObject {
 public:
  JsonObject(const nlohmann::json& value, std::string path);

  // A whole number, also as a decimal string (proto JSON's 64-bit integers).
  int64_t Int(const std::string& name, int64_t fallback, int64_t lowest, int64_t highest);
  double Number(const std::string& name, double fallback, double lowest);
  // Above 0, where 0 means nothing: it is refused, not taken for absence.
  double Positive(const std::string& name, double fallback);
  // 0 = not given, -1 = none: nothing else below 0 means anything.
  double NumberOrNone(const std::string& name);
  // A list of finite numbers; empty when absent.
  std::vector<double> Numbers(const std::string& name);
  bool Bool(const std::string& name, bool fallback);
  std::string String(const std::string& name, const std::string& fallback);
  // One of `names`, as its index.
  int Choice(const std::string& name, std::initializer_list<std::string_view> names, int fallback);
  std::optional<JsonObject> Object(const std::string& name);
  std::vector<JsonObject> Objects(const std::string& name);

  // The text must not be empty.
  std::string Required(const std::string& name);

  bool Has(const std::string& name) const;
  std::string PathOf(const std::string& name) const;
  const nlohmann::json& value() const { return value_; }

  // Refuses fields that were never asked for.
  void Finish() const;

  // Refuses every one of `names` that is set: it would change nothing. Its zero
  // (0, false, "", [], ..._UNSPECIFIED) leaves a field open as absence does.
  // `why` goes on "has no effect": what makes it idle, (what to do). The server
  // refuses the same at submit (server/rpc/idle_options.cc).
  void RefuseIdle(std::initializer_list<std::string_view> names, const std::string& why) const;

  // UserError INVALID_SPEC about a field.
  [[noreturn]] void Refuse(const std::string& name, const std::string& wanted) const;

 private:
  const nlohmann::json* Find(const std::string& name);

  const nlohmann::json& value_;
  std::string path_;
  std::set<std::string> known_;
};

}  // namespace quantry::engine
