#include "worker/engine/base/json_object.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

std::optional<int64_t> AsInteger(const nlohmann::json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return std::nullopt;
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float() && std::nearbyint(value.get<double>()) == value.get<double>() &&
      std::abs(value.get<double>()) < 0x1p53) {
    return static_cast<int64_t>(value.get<double>());
  }
  if (!value.is_string()) return std::nullopt;
  const auto& text = value.get_ref<const std::string&>();
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return number;
}

// Whether a value says no more than absence would (proto3's defaults).
bool LeavesOpen(const nlohmann::json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_array()) return value.empty();
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  return text.empty() || text.ends_with("_UNSPECIFIED");
}

}  // namespace

JsonObject::JsonObject(const nlohmann::json& value, std::string path)
    : value_(value), path_(std::move(path)) {
  if (value_.is_object()) return;
  const std::string got = value_.type_name();
  throw UserError("INVALID_SPEC", StrCat(path_, " must be a JSON object, got ", got),
                  {{"field", path_}, {"got", got}});
}

std::string JsonObject::PathOf(const std::string& name) const {
  return path_.empty() ? name : path_ + "." + name;
}

void JsonObject::Refuse(const std::string& name, const std::string& wanted) const {
  const auto found = value_.find(name);
  const std::string got =
      found == value_.end()
          ? "nothing"
          : Printable(found->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  const std::string field = Printable(PathOf(name));
  throw UserError("INVALID_SPEC", StrCat(field, " must be ", wanted, ", got ", got),
                  {{"field", field}, {"wanted", wanted}, {"got", got}});
}

const nlohmann::json* JsonObject::Find(const std::string& name) {
  known_.insert(name);
  const auto found = value_.find(name);
  return found == value_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonObject::Has(const std::string& name) const {
  const auto found = value_.find(name);
  return found != value_.end() && !found->is_null();
}

int64_t JsonObject::Int(const std::string& name, int64_t fallback, int64_t lowest,
                        int64_t highest) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return fallback;
  const std::optional<int64_t> number = AsInteger(*found);
  if (!number || *number < lowest || *number > highest) {
    Refuse(name, StrCat("a whole number from ", lowest, " to ", highest));
  }
  return *number;
}

double JsonObject::Number(const std::string& name, double fallback, double lowest) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return fallback;
  const double number = found->is_number() ? found->get<double>() : NAN;
  if (!std::isfinite(number) || number < lowest) {
    Refuse(name, StrCat("a finite number of at least ", lowest));
  }
  return number;
}

double JsonObject::Positive(const std::string& name, double fallback) {
  const double number = Number(name, fallback, std::numeric_limits<double>::lowest());
  if (Has(name) && number <= 0) Refuse(name, "above 0 (left out = default)");
  return number;
}

double JsonObject::NumberOrNone(const std::string& name) {
  const double number = Number(name, 0, std::numeric_limits<double>::lowest());
  if (number < 0 && number != -1) Refuse(name, "-1 (none) or above 0 (left out = default)");
  return number;
}

std::vector<double> JsonObject::Numbers(const std::string& name) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return {};
  if (!found->is_array()) Refuse(name, "a list of numbers");
  std::vector<double> numbers;
  for (const nlohmann::json& item : *found) {
    const double number = item.is_number() ? item.get<double>() : NAN;
    if (!std::isfinite(number)) Refuse(name, "a list of finite numbers");
    numbers.push_back(number);
  }
  return numbers;
}

bool JsonObject::Bool(const std::string& name, bool fallback) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return fallback;
  if (!found->is_boolean()) Refuse(name, "true or false");
  return found->get<bool>();
}

std::string JsonObject::String(const std::string& name, const std::string& fallback) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return fallback;
  if (!found->is_string()) Refuse(name, "a string");
  return found->get<std::string>();
}

std::string JsonObject::Required(const std::string& name) {
  std::string text = String(name, "");
  if (text.empty()) Refuse(name, "a string that is not empty");
  return text;
}

int JsonObject::Choice(const std::string& name, std::initializer_list<std::string_view> names,
                       int fallback) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return fallback;
  int index = 0;
  for (const std::string_view candidate : names) {
    if (found->is_string() && found->get_ref<const std::string&>() == candidate) return index;
    ++index;
  }
  Refuse(name, StrCat("one of ", Join(names)));
}

std::optional<JsonObject> JsonObject::Object(const std::string& name) {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return std::nullopt;
  return JsonObject(*found, PathOf(name));
}

std::vector<JsonObject> JsonObject::Objects(const std::string& name) {
  std::vector<JsonObject> objects;
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return objects;
  if (!found->is_array()) Refuse(name, "an array of objects");
  for (size_t i = 0; i < found->size(); ++i) {
    objects.emplace_back((*found)[i], StrCat(PathOf(name), "[", i, "]"));
  }
  return objects;
}

void JsonObject::RefuseIdle(std::initializer_list<std::string_view> names,
                            const std::string& why) const {
  for (const std::string_view candidate : names) {
    const std::string name(candidate);
    const auto found = value_.find(name);
    if (found == value_.end() || LeavesOpen(*found)) continue;
    Refuse(name, "left out, as it has no effect " + why);
  }
}

void JsonObject::Finish() const {
  for (const auto& [name, unused] : value_.items()) {
    if (known_.count(name) != 0) continue;
    const std::string field = Printable(PathOf(name));
    throw UserError("INVALID_SPEC",
                    StrCat("unknown field ", field, "; known here: ", Join(known_, 32)),
                    {{"field", field}, {"known", Join(known_, 32)}});
  }
}

}  // namespace quantry::engine
