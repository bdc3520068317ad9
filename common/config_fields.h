// One configuration field seen by name and text: the part of the config
// loader that knows protobuf reflection. Internal to common/config_loader.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace quantry {

// "data_dir" -> "data-dir", "QUANTRY_DATA_DIR".
std::string FlagName(std::string_view field);
std::string EnvironmentName(std::string_view field);

// Help and default of the (config) option; empty when the proto says nothing.
std::string FieldHelp(const google::protobuf::FieldDescriptor& field);
std::string FieldDefault(const google::protobuf::FieldDescriptor& field);

// Replaces the field's value. A singular field takes the one text in `values`.
// INVALID_ARGUMENT says what was wanted and what was got.
absl::Status SetFieldFromText(const google::protobuf::FieldDescriptor& field,
                              const std::vector<std::string>& values,
                              google::protobuf::Message* message);

// The candidate with the smallest edit distance; empty when none is within
// `max_distance`.
std::string Nearest(std::string_view name, const std::vector<std::string>& candidates,
                    size_t max_distance);

}  // namespace quantry
