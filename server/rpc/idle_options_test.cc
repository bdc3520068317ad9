#include "server/rpc/idle_options.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/errors.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "gtest/gtest.h"
#include "server/rpc/validation.h"
#include "tests/conformance/idle_options.h"

namespace quantry::server {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using Request = v1::CreateQuantizationJobRequest;
using idle_options::Cases;
using idle_options::FieldOf;

constexpr char kMethod[] = "quantization_job.spec.method";

Request RequestOf(const json& method) {
  Request request;
  request.set_parent("tenants/acme");
  v1::JobSpec& spec = *request.mutable_quantization_job()->mutable_spec();
  spec.mutable_model()->set_local_path("/model");
  spec.mutable_calibration()->mutable_source()->set_local_path("/text");
  if (method.contains("restore")) {
    spec.mutable_preprocessing()->mutable_source()->set_local_path("/text");
  }
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(method.dump(), spec.mutable_method());
  EXPECT_TRUE(parsed.ok()) << method;
  return request;
}

// The value as the refusal names it: names of enumerations stand bare.
std::string GotOf(const json& value) {
  const bool bare = value.is_string();
  return "got " + (bare ? value.get<std::string>() : value.dump());
}

TEST(IdleOptions, AreRefusedByNameWithTheReason) {
  for (const json& c : Cases()) {
    const json idle = c.value("idle", json::object());
    for (const auto& [pointer, value] : idle.items()) {
      json method = c["method"];
      method[json::json_pointer(pointer)] = value;
      const absl::Status status = ValidateCreate(RequestOf(method), {}).status();
      const std::string message(status.message());
      EXPECT_TRUE(HasReason(status, Reason::kInvalidSpec)) << c["name"] << ": " << pointer;
      EXPECT_THAT(message,
                  HasSubstr(FieldOf(kMethod, pointer) + ": wanted nothing, as it has no effect"))
          << c["name"];
      EXPECT_THAT(message, HasSubstr(c["why"].get<std::string>())) << c["name"];
      EXPECT_THAT(message, testing::EndsWith(", " + GotOf(value))) << c["name"];
      EXPECT_THAT(message, testing::Not(HasSubstr("(and "))) << "the option alone: " << c["name"];
    }
  }
}

TEST(IdleOptions, OthersAreTakenAndDefaultsAddNone) {
  for (const json& c : Cases()) {
    Request request = RequestOf(c["method"]);
    const auto submit = ValidateCreate(request, {});
    ASSERT_TRUE(submit.ok()) << c["name"] << ": " << submit.status();
    *request.mutable_quantization_job()->mutable_spec() = submit->spec;
    EXPECT_TRUE(ValidateCreate(request, {}).ok()) << c["name"] << ": filled in";
  }
}

}  // namespace
}  // namespace quantry::server
