#include "worker/engine/model/config_reader.h"

#include <cmath>
#include <utility>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

using nlohmann::json;

EngineError Wrong(const std::string& where, const std::string& key, const std::string& wanted,
                  const json* got) {
  const std::string shown =
      got == nullptr ? "nothing"
                     : Printable(got->dump(-1, ' ', true, json::error_handler_t::replace), 80);
  return UserError("INVALID_CHECKPOINT",
                   StrCat(where, ": ", key, " must be ", wanted, ", got ", shown),
                   {{"key", key}, {"wanted", wanted}, {"got", shown}});
}

}  // namespace

ConfigReader::ConfigReader(const json& value, std::string where)
    : value_(&value), where_(std::move(where)) {
  if (!value.is_object() && !value.is_null())
    throw Wrong(where_, "the top level", "an object", &value);
}

const json* ConfigReader::Get(const std::string& key) const {
  if (!value_->is_object()) return nullptr;
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

int64_t ConfigReader::Integer(const std::string& key, int64_t low, int64_t high,
                              std::optional<int64_t> fallback) const {
  const json* got = Get(key);
  if (got == nullptr && fallback) return *fallback;
  const std::string wanted = StrCat("an integer from ", low, " to ", high);
  if (got == nullptr || !got->is_number_integer()) throw Wrong(where_, key, wanted, got);
  const bool too_large = got->is_number_unsigned() &&
                         got->get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()};
  if (too_large || got->get<int64_t>() < low || got->get<int64_t>() > high) {
    throw Wrong(where_, key, wanted, got);
  }
  return got->get<int64_t>();
}

double ConfigReader::Number(const std::string& key, double low, double high,
                            std::optional<double> fallback) const {
  const json* got = Get(key);
  if (got == nullptr && fallback) return *fallback;
  const std::string wanted = StrCat("a number from ", low, " to ", high);
  if (got == nullptr || !got->is_number()) throw Wrong(where_, key, wanted, got);
  const double value = got->get<double>();
  if (!(value >= low && value <= high)) throw Wrong(where_, key, wanted, got);
  return value;
}

bool ConfigReader::Flag(const std::string& key, bool fallback) const {
  const json* got = Get(key);
  if (got == nullptr) return fallback;
  if (!got->is_boolean()) throw Wrong(where_, key, "true or false", got);
  return got->get<bool>();
}

std::string ConfigReader::Text(const std::string& key, const std::string& fallback) const {
  const json* got = Get(key);
  if (got == nullptr) return fallback;
  if (!got->is_string()) throw Wrong(where_, key, "text", got);
  return got->get<std::string>();
}

std::vector<std::string> ConfigReader::Texts(const std::string& key) const {
  std::vector<std::string> texts;
  const json* got = Get(key);
  if (got == nullptr) return texts;
  if (!got->is_array()) throw Wrong(where_, key, "a list of text", got);
  for (const json& item : *got) {
    if (!item.is_string()) throw Wrong(where_, key, "a list of text", got);
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

ConfigReader ConfigReader::Object(const std::string& key) const {
  static const json kNone;
  const json* got = Get(key);
  if (got != nullptr && !got->is_object()) throw Wrong(where_, key, "an object", got);
  return ConfigReader(got == nullptr ? kNone : *got, where_ + " " + key);
}

}  // namespace quantry::engine
