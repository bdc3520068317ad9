#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "client/cli/errors.h"
#include "quantry/v1/artifact.pb.h"
#include "quantry/v1/job.pb.h"

namespace google::protobuf {
class Message;
}

// The JSON of --output json, the contract with scripts. Unlike proto JSON:
// 64-bit integers are numbers, enum values lose their prefix ("SUCCEEDED",
// "QUANTIZING"), formats are written as the flags write them. Keys are only ever
// added. Fields without a value are left out, except `name` and `state`.
namespace quantry::cli {

using Json = nlohmann::ordered_json;

// A job in full: what get, submit, watch, list, update and cancel print.
Json JobJson(const v1::QuantizationJob& job);
// {"sequence", "time", "epoch", and one key named after the kind}.
Json EventJson(const v1::JobEvent& event);
// {"code", "reason", "message", "metadata", "field_violations", "next"}.
Json ErrorJson(const ErrorReport& report);
Json ArtifactJson(const v1::Artifact& artifact);
// As manifest.json, with stages as words and `spec`, parsed, for spec_json.
Json ManifestJson(const v1::Manifest& manifest);
// Any other message as proto JSON with names as declared, then integers that
// proto JSON writes as strings turned into numbers.
Json MessageJson(const google::protobuf::Message& message);

// Indented on a terminal, one line elsewhere; ended by "\n". Bytes that are no
// UTF-8 are replaced.
std::string Dump(const Json& json, bool pretty);

}  // namespace quantry::cli
