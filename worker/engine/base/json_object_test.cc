#include "worker/engine/base/json_object.h"

#include <gtest/gtest.h>

#include <string>

#include "worker/engine/base/error.h"

namespace quantry::engine {
namespace {

std::string Failure(const std::string& text, const std::function<void(JsonObject&)>& read) {
  const nlohmann::json json = nlohmann::json::parse(text);
  try {
    JsonObject object(json, "job");
    read(object);
    object.Finish();
  } catch (const EngineError& error) {
    EXPECT_EQ(error.reason, "INVALID_SPEC");
    return error.what();
  }
  return "";
}

TEST(JsonObject, ReadsIntegersAsNumbersAndStrings) {
  const nlohmann::json json = {{"a", 5}, {"b", "-7"}, {"c", 3.0}, {"d", nullptr}};
  JsonObject object(json, "");
  EXPECT_EQ(object.Int("a", 0, 0, 9), 5);
  EXPECT_EQ(object.Int("b", 0, -9, 9), -7);
  EXPECT_EQ(object.Int("c", 0, 0, 9), 3);
  EXPECT_EQ(object.Int("d", 4, 0, 9), 4);
  EXPECT_EQ(object.Int("absent", 8, 0, 9), 8);
  object.Finish();
}

TEST(JsonObject, RefusesWhatDoesNotFit) {
  const auto integer = [](JsonObject& o) { o.Int("a", 0, 0, 10); };
  EXPECT_EQ(Failure(R"({"a": 11})", integer), "job.a must be a whole number from 0 to 10, got 11");
  for (const char* bad : {R"({"a": "x"})", R"({"a": "1x"})", R"({"a": ""})", R"({"a": 1.5})",
                          R"({"a": 18446744073709551615})", R"({"a": []})", R"({"a": true})"}) {
    EXPECT_NE(Failure(bad, integer), "") << bad;
  }
  EXPECT_NE(Failure(R"({"a": 1})", [](JsonObject& o) { o.Bool("a", false); }), "");
  EXPECT_NE(Failure(R"({"a": 1})", [](JsonObject& o) { o.String("a", ""); }), "");
  EXPECT_NE(Failure(R"({"a": 1})", [](JsonObject& o) { o.Object("a"); }), "");
  EXPECT_NE(Failure(R"({"a": {}})", [](JsonObject& o) { o.Objects("a"); }), "");
  EXPECT_NE(Failure(R"({"a": -1})", [](JsonObject& o) { o.Number("a", 0, 0); }), "");
  EXPECT_NE(Failure(R"({"a": "C"})", [](JsonObject& o) { o.Choice("a", {"A", "B"}, 0); }), "");
  EXPECT_NE(Failure(R"({})", [](JsonObject& o) { o.Required("a"); }), "");
}

TEST(JsonObject, IdleFieldsAreRefusedWhereTheySaySomething) {
  const auto idle = [](JsonObject& o) {
    o.RefuseIdle({"a", "b"}, "with c (leave one of the two out)");
    o.Int("c", 0, 0, 9);
  };
  EXPECT_EQ(Failure(R"({"b": 0.5, "c": 1})", idle),
            "job.b must be left out, as it has no effect with c (leave one of the two out), got "
            "0.5");
  for (const char* set : {"1", "-1", "true", R"("A_MEAN")", R"(["x"])", "{}"}) {
    const std::string message = Failure(std::string(R"({"a": )") + set + "}", idle);
    EXPECT_NE(message.find("job.a must be left out"), std::string::npos) << set << message;
  }
  for (const char* open : {"0", "0.0", "false", "null", R"("")", R"("A_UNSPECIFIED")", "[]"}) {
    const nlohmann::json json = {{"a", nlohmann::json::parse(open)}};
    EXPECT_NO_THROW(JsonObject(json, "job").RefuseIdle({"a"}, "")) << open;
  }
}

TEST(JsonObject, UnknownFieldsAreNamedWithTheirPath) {
  const std::string message = Failure(R"({"a": {"b": 1, "c": 2}})", [](JsonObject& o) {
    JsonObject inner = *o.Object("a");
    inner.Int("b", 0, 0, 9);
    inner.Finish();
  });
  EXPECT_EQ(message, "unknown field job.a.c; known here: b");
}

}  // namespace
}  // namespace quantry::engine
