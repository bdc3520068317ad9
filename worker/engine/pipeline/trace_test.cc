#include "worker/engine/pipeline/trace.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kParent[] = "b7ad6b7169203331";

std::string Traceparent(const std::string& flags) {
  return "00-" + std::string(kTrace) + "-" + kParent + "-" + flags;
}

Job TracedJob(const std::string& output_dir, const std::string& flags) {
  return ParseJob({{"job", "tenants/t/quantizationJobs/j"},
                   {"job_uid", "u"},
                   {"epoch", 2},
                   {"model_dir", "/m"},
                   {"output_dir", output_dir},
                   {"method", {{"rtn", {{"grid", {{"bits", 4}}}}}}},
                   {"traceparent", Traceparent(flags)}});
}

std::vector<Span> SomeSpans() {
  return {{.name = "loading", .begin = 10, .end = 11},
          {.name = "quantizing", .begin = 11, .end = 15},
          {.name = "block 0",
           .block = 0,
           .begin = 11,
           .end = 13,
           .figures = {{"loss_final", 0.5}, {"loss_rtn", std::nan("")}}},
          {.name = "block 1", .block = 1, .begin = 13, .end = 15},
          {.name = "packing", .begin = 15, .end = 16.5}};
}

TEST(Trace, ParsesTraceparents) {
  const auto parent = ParseTraceParent(Traceparent("01"));
  ASSERT_TRUE(parent.has_value());
  EXPECT_EQ(parent->trace_id, kTrace);
  EXPECT_EQ(parent->parent_id, kParent);
  EXPECT_TRUE(parent->sampled);
  EXPECT_TRUE(ParseTraceParent(Traceparent("03"))->sampled);
  EXPECT_FALSE(ParseTraceParent(Traceparent("00"))->sampled);
  for (const std::string& bad :
       {std::string(), std::string("00-1-2-01"), "01" + Traceparent("01").substr(2),
        "00-" + std::string(32, '0') + "-" + kParent + "-01"}) {
    EXPECT_FALSE(ParseTraceParent(bad).has_value()) << bad;
  }
}

// The fields that opentelemetry-proto's JSON form asks of a span.
TEST(Trace, SpansNestAndCarryTheTrace) {
  const Job job = TracedJob("/o", "01");
  const std::string text =
      TraceJson(job, *ParseTraceParent(job.traceparent), SomeSpans(), /*to_unix=*/1000);
  const auto json = nlohmann::json::parse(text);
  const auto& resource = json.at("resourceSpans").at(0);
  EXPECT_EQ(resource.at("resource").at("attributes").at(0).dump(),
            R"({"key":"service.name","value":{"stringValue":"quantry-engine"}})");
  const auto& spans = resource.at("scopeSpans").at(0).at("spans");
  ASSERT_EQ(spans.size(), 6u);
  std::set<std::string> ids;
  for (const auto& span : spans) {
    EXPECT_EQ(span.at("traceId"), kTrace);
    EXPECT_EQ(span.at("spanId").get<std::string>().size(), 16u);
    EXPECT_TRUE(ids.insert(span.at("spanId")).second);
    EXPECT_LE(std::stoll(span.at("startTimeUnixNano").get<std::string>()),
              std::stoll(span.at("endTimeUnixNano").get<std::string>()));
  }
  EXPECT_EQ(spans[0].at("name"), "quantry-engine run");
  EXPECT_EQ(spans[0].at("parentSpanId"), kParent);
  EXPECT_EQ(spans[0].at("startTimeUnixNano"), "1010000000000");
  EXPECT_EQ(spans[0].at("endTimeUnixNano"), "1016500000000");
  for (const int stage : {1, 2, 5}) EXPECT_EQ(spans[stage].at("parentSpanId"), spans[0]["spanId"]);
  for (const int block : {3, 4}) EXPECT_EQ(spans[block].at("parentSpanId"), spans[2]["spanId"]);
  EXPECT_EQ(spans[3].at("attributes").dump(),
            R"([{"key":"quantry.block","value":{"intValue":"0"}},)"
            R"({"key":"quantry.loss_final","value":{"doubleValue":0.5}}])");
  EXPECT_EQ(text, TraceJson(job, *ParseTraceParent(job.traceparent), SomeSpans(), 1000));
}

TEST(Trace, IsWrittenForSampledTracesOnly) {
  const test::TempDir dir;
  const std::string file = dir.File("report/trace.json");
  const auto written = WriteTrace(TracedJob(dir.path(), "01"), SomeSpans(), 0);
  ASSERT_TRUE(written.has_value());
  EXPECT_EQ(written->path, "report/trace.json");
  const std::string text = ReadFile(file, 1 << 20, "TEST");
  EXPECT_EQ(written->bytes, text.size());
  EXPECT_EQ(written->sha256, Sha256OfText(text));
  EXPECT_FALSE(WriteTrace(TracedJob(dir.path(), "00"), SomeSpans(), 0).has_value());
  EXPECT_FALSE(std::filesystem::exists(file)) << "an earlier run's is left";
}

}  // namespace
}  // namespace quantry::engine
