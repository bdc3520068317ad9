// Options that others leave without effect are refused, whatever the method.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/conformance/idle_options.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/testing/errors.h"

namespace quantry::engine {
namespace {

using idle_options::Cases;
using idle_options::FieldOf;
using nlohmann::json;

json JobOf(const json& method) {
  json job = {
      {"model_dir", "/m"},
      {"output_dir", "/o"},
      {"method", method},
      {"calibration", {{"text", {{"path", "/c"}}}, {"samples", 8}, {"sequence_length", 32}}}};
  if (method.contains("restore")) job["preprocessing"] = {{"text", {{"path", "/p"}}}};
  return job;
}

TEST(IdleOptions, AreRefusedByNameWithTheReason) {
  for (const json& c : Cases()) {
    const json idle = c.value("idle", json::object());
    for (const auto& [pointer, value] : idle.items()) {
      json method = c["method"];
      method[json::json_pointer(pointer)] = value;
      const EngineError error = test::ErrorOf([&] { ParseJob(JobOf(method)); });
      EXPECT_EQ(error.reason, "INVALID_SPEC") << c["name"] << ": " << pointer;
      EXPECT_TRUE(test::Mentions(
          error, FieldOf("job.method", pointer) + " must be left out, as it has no effect"))
          << c["name"] << ": " << error.what();
      EXPECT_TRUE(test::Mentions(error, c["why"].get<std::string>()))
          << c["name"] << ": " << error.what();
    }
  }
}

TEST(IdleOptions, OthersAreTaken) {
  for (const json& c : Cases()) {
    EXPECT_NO_THROW(ParseJob(JobOf(c["method"]))) << c["name"];
  }
}

}  // namespace
}  // namespace quantry::engine
