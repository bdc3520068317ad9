#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace quantry::engine {

// Reads typed, bounded values from one JSON object; null counts as absent.
// Every method throws UserError INVALID_CHECKPOINT naming file, key, wanted and
// got. Borrows the JSON.
class ConfigReader {
 public:
  // `value` must be an object (or null: everything absent).
  ConfigReader(const nlohmann::json& value, std::string where);

  // Has: with a value; HasKey: a null counts too.
  bool Has(const std::string& key) const { return Get(key) != nullptr; }
  bool HasKey(const std::string& key) const { return value_->is_object() && value_->contains(key); }
  int64_t Integer(const std::string& key, int64_t low, int64_t high,
                  std::optional<int64_t> fallback = std::nullopt) const;
  double Number(const std::string& key, double low, double high,
                std::optional<double> fallback = std::nullopt) const;
  bool Flag(const std::string& key, bool fallback) const;
  std::string Text(const std::string& key, const std::string& fallback) const;
  std::vector<std::string> Texts(const std::string& key) const;
  ConfigReader Object(const std::string& key) const;

 private:
  const nlohmann::json* Get(const std::string& key) const;

  const nlohmann::json* value_;
  std::string where_;
};

}  // namespace quantry::engine
