#include "common/config_fields.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <limits>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "quantry/v1/config.pb.h"

namespace quantry {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

absl::Status Wanted(std::string_view what, std::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat("wanted ", View(what), ", got '", View(got), "'"));
}

template <class Int>
absl::Status ParseInt(std::string_view text, Int* out) {
  if (absl::SimpleAtoi(View(text), out)) return absl::OkStatus();
  return Wanted(absl::StrCat("an integer of ", std::numeric_limits<Int>::min(), " to ",
                             std::numeric_limits<Int>::max()),
                text);
}

absl::Status SetScalar(const FieldDescriptor& field, std::string_view text, Message* message) {
  const auto& reflection = *message->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      reflection.SetString(message, &field, std::string(text));
      return absl::OkStatus();
    case FieldDescriptor::CPPTYPE_BOOL: {
      bool value = false;
      if (!absl::SimpleAtob(View(text), &value)) return Wanted("true or false", text);
      reflection.SetBool(message, &field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      std::int32_t value = 0;
      absl::Status status = ParseInt(text, &value);
      if (status.ok()) reflection.SetInt32(message, &field, value);
      return status;
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      std::int64_t value = 0;
      absl::Status status = ParseInt(text, &value);
      if (status.ok()) reflection.SetInt64(message, &field, value);
      return status;
    }
    default:
      return absl::InternalError(
          absl::StrCat("configuration field ", field.name(), " has a type the loader lacks"));
  }
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

}  // namespace

std::string FlagName(std::string_view field) {
  std::string name(field);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::string EnvironmentName(std::string_view field) {
  std::string name = absl::StrCat("QUANTRY_", View(field));
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

std::string FieldHelp(const FieldDescriptor& field) {
  return field.options().GetExtension(v1::config).help();
}

std::string FieldDefault(const FieldDescriptor& field) {
  return field.options().GetExtension(v1::config).default_value();
}

absl::Status SetFieldFromText(const FieldDescriptor& field, const std::vector<std::string>& values,
                              Message* message) {
  if (!field.is_repeated()) {
    if (values.size() == 1) return SetScalar(field, values[0], message);
    return absl::InvalidArgumentError(
        absl::StrCat("wanted one value, got ", values.size(), " for ", field.name()));
  }
  const auto& reflection = *message->GetReflection();
  reflection.ClearField(message, &field);
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_STRING) {
    return absl::InternalError(absl::StrCat("list field ", field.name(), " is not of strings"));
  }
  for (const std::string& value : values) reflection.AddString(message, &field, value);
  return absl::OkStatus();
}

std::string Nearest(std::string_view name, const std::vector<std::string>& candidates,
                    size_t max_distance) {
  std::string best;
  size_t best_distance = max_distance + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace quantry
