#include "client/cli/json.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/time_util.h>

#include <map>
#include <nlohmann/json.hpp>

#include "client/cli/format.h"
#include "common/enum_word.h"

namespace quantry::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

double InSeconds(const google::protobuf::Duration& d) {
  return static_cast<double>(d.seconds()) + 1e-9 * static_cast<double>(d.nanos());
}

// Enum prefixes by type: JOB_STATE_, STAGE_, ...; from the zero value's name,
// which buf lint makes {PREFIX}UNSPECIFIED.
std::string JsonWord(const google::protobuf::EnumValueDescriptor* value) {
  const std::string zero = value->type()->FindValueByNumber(0)->name();
  const std::string prefix = zero.substr(0, zero.size() - std::string("UNSPECIFIED").size());
  if (value->type() == v1::OutputFormat_descriptor()) return EnumWord(value->name(), prefix);
  return value->name().rfind(prefix, 0) == 0 ? value->name().substr(prefix.size()) : value->name();
}

Json SingleValue(const Message& message, const FieldDescriptor* field, int index);

// Well-known types as text and seconds, everything else by its fields.
Json MessageValue(const Message& message) {
  if (const auto* time = dynamic_cast<const google::protobuf::Timestamp*>(&message)) {
    return Rfc3339(*time);
  }
  if (const auto* duration = dynamic_cast<const google::protobuf::Duration*>(&message)) {
    return InSeconds(*duration);
  }
  if (const auto* status = dynamic_cast<const google::rpc::Status*>(&message)) {
    return ErrorJson(Describe(*status));
  }
  return MessageJson(message);
}

Json MapValue(const Message& message, const FieldDescriptor* field) {
  Json map = Json::object();
  const auto* reflection = message.GetReflection();
  const FieldDescriptor* key = field->message_type()->map_key();
  const FieldDescriptor* value = field->message_type()->map_value();
  std::map<std::string, const Message*> sorted;  // protobuf's order differs from run to run
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const Message& entry = reflection->GetRepeatedMessage(message, field, i);
    sorted[entry.GetReflection()->GetString(entry, key)] = &entry;
  }
  for (const auto& [name, entry] : sorted) map[name] = SingleValue(*entry, value, -1);
  return map;
}

Json EnumValueJson(const Message& message, const FieldDescriptor* field, int index) {
  const auto* reflection = message.GetReflection();
  const int number = index < 0 ? reflection->GetEnumValue(message, field)
                               : reflection->GetRepeatedEnumValue(message, field, index);
  const auto* value = field->enum_type()->FindValueByNumber(number);
  return value == nullptr ? Json(number) : Json(JsonWord(value));
}

// One value of a singular field (index -1) or a repeated one.
Json SingleValue(const Message& message, const FieldDescriptor* field, int index) {
  const auto* r = message.GetReflection();
  const bool one = index < 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return one ? r->GetInt32(message, field) : r->GetRepeatedInt32(message, field, index);
    case FieldDescriptor::CPPTYPE_INT64:
      return one ? r->GetInt64(message, field) : r->GetRepeatedInt64(message, field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return one ? r->GetUInt32(message, field) : r->GetRepeatedUInt32(message, field, index);
    case FieldDescriptor::CPPTYPE_UINT64:
      return one ? r->GetUInt64(message, field) : r->GetRepeatedUInt64(message, field, index);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return one ? r->GetDouble(message, field) : r->GetRepeatedDouble(message, field, index);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return one ? r->GetFloat(message, field) : r->GetRepeatedFloat(message, field, index);
    case FieldDescriptor::CPPTYPE_BOOL:
      return one ? r->GetBool(message, field) : r->GetRepeatedBool(message, field, index);
    case FieldDescriptor::CPPTYPE_STRING:
      return one ? r->GetString(message, field) : r->GetRepeatedString(message, field, index);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumValueJson(message, field, index);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageValue(one ? r->GetMessage(message, field)
                              : r->GetRepeatedMessage(message, field, index));
  }
  return nullptr;
}

Json FieldValue(const Message& message, const FieldDescriptor* field) {
  if (field->is_map()) return MapValue(message, field);
  if (!field->is_repeated()) return SingleValue(message, field, -1);
  Json list = Json::array();
  for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
    list.push_back(SingleValue(message, field, i));
  }
  return list;
}

// Scalars show even when zero (a loss of 0 is news), unless `sparse`.
bool Shown(const Message& message, const FieldDescriptor* field) {
  const auto* reflection = message.GetReflection();
  if (field->is_repeated()) return true;
  if (field->has_presence()) return reflection->HasField(message, field);
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING ||
      field->cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    return reflection->HasField(message, field);
  }
  return true;
}

// Manifests name stages as the proto does; elsewhere in this JSON they are
// words: "LOADING".
Json TimingJson(const v1::Timing& timing) {
  Json json = MessageJson(timing);
  Json stages = Json::object();
  constexpr std::string_view kPrefix = "STAGE_";
  for (const auto& [stage, seconds] : json["stages_s"].items()) {
    stages[stage.rfind(kPrefix, 0) == 0 ? stage.substr(kPrefix.size()) : stage] = seconds;
  }
  json["stages_s"] = std::move(stages);
  return json;
}

// The result's parts at the top level, where scripts look for them.
void AddResult(const v1::QuantizationJob& job, Json& json) {
  const v1::JobResult& result = job.result();
  Json artifact = {{"name", job.artifact()}, {"uri", result.artifact_uri()}};
  if (!job.artifact().empty() || job.has_result()) json["artifact"] = std::move(artifact);
  if (!job.has_result()) return;
  if (result.has_quality()) json["quality"] = MessageJson(result.quality());
  json["quality_gate_failed"] = result.quality_gate_failed();
  json["bits"] = MessageJson(result.bits());
  json["outputs"] = MessageJson(result)["outputs"];
  json["timing"] = TimingJson(result.timing());
  json["blocks"] = MessageJson(result)["blocks"];
  json["peak_rss_bytes"] = result.peak_rss_bytes();
}

}  // namespace

Json MessageJson(const Message& message) {
  Json json = Json::object();
  const auto* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (Shown(message, field)) json[field->name()] = FieldValue(message, field);
  }
  return json;
}

Json JobJson(const v1::QuantizationJob& job) {
  Json json;
  json["name"] = job.name();
  json["state"] = "UNSPECIFIED";
  const Json fields = MessageJson(job);
  for (const auto& [key, value] : fields.items()) {
    if (key != "result" && key != "artifact") json[key] = value;
  }
  AddResult(job, json);
  return json;
}

Json EventJson(const v1::JobEvent& event) { return MessageJson(event); }

Json ArtifactJson(const v1::Artifact& artifact) { return MessageJson(artifact); }

Json ManifestJson(const v1::Manifest& manifest) {
  Json json = MessageJson(manifest);
  json["timing"] = TimingJson(manifest.timing());
  json.erase("spec_json");
  Json spec = Json::parse(manifest.spec_json(), nullptr, false);
  if (spec.is_object()) json["spec"] = std::move(spec);
  return json;
}

Json ErrorJson(const ErrorReport& report) {
  Json json = {{"code", report.code},
               {"reason", report.reason},
               {"message", report.message},
               {"metadata", report.metadata}};
  Json violations = Json::array();
  for (const ErrorReport::Violation& v : report.violations) {
    violations.push_back({{"field", v.field}, {"description", v.description}});
  }
  if (!violations.empty()) json["field_violations"] = std::move(violations);
  if (report.retry_after_s) json["retry_after_s"] = *report.retry_after_s;
  if (!report.next.empty()) json["next"] = report.next;
  return json;
}

std::string Dump(const Json& json, bool pretty) {
  return json.dump(pretty ? 2 : -1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace quantry::cli
