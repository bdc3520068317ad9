#include "common/log.h"

#include <limits>
#include <thread>

#include "gtest/gtest.h"

namespace quantry::log {
namespace {

constexpr std::string_view kTime = "2026-01-02T03:04:05.678Z";

TEST(Log, TextLine) {
  EXPECT_EQ(FormatLine(Format::kText, Level::kWarning, kTime, "lease expired",
                       {{"job", "tenants/t/quantizationJobs/a"}, {"epoch", 3}, {"why", "a b"}}),
            "2026-01-02T03:04:05.678Z WARNING lease expired job=tenants/t/quantizationJobs/a "
            "epoch=3 why=\"a b\"");
}

TEST(Log, JsonLine) {
  EXPECT_EQ(FormatLine(Format::kJson, Level::kInfo, kTime, "a \"b\"",
                       {{"n", 7}, {"ok", true}, {"x", 0.5}, {"s", std::string("v\n")}}),
            R"({"ts":"2026-01-02T03:04:05.678Z","level":"info","message":"a \"b\"",)"
            R"("n":7,"ok":true,"x":0.5,"s":"v\n"})");
}

TEST(Log, AuditLinesPassEveryLevel) {
  ASSERT_TRUE(Configure("json", "error").ok());
  ::testing::internal::CaptureStderr();
  Warning("left out");
  Audit({{"principal", "ci"}});
  const std::string text = ::testing::internal::GetCapturedStderr();
  ASSERT_TRUE(Configure("text", "info").ok());
  EXPECT_EQ(text.find("left out"), std::string::npos);
  EXPECT_NE(text.find(R"("level":"audit","message":"audit","principal":"ci"})"), std::string::npos)
      << text;
}

TEST(Log, NonFiniteNumbersStayValidJson) {
  EXPECT_EQ(FormatLine(Format::kJson, Level::kInfo, kTime, "m",
                       {{"x", std::numeric_limits<double>::quiet_NaN()}}),
            R"({"ts":"2026-01-02T03:04:05.678Z","level":"info","message":"m","x":"nan"})");
}

TEST(Log, HostileValuesCannotForgeLines) {
  for (const Format format : {Format::kText, Format::kJson}) {
    const std::string line =
        FormatLine(format, Level::kInfo, kTime, "m\nERROR forged", {{"k", "v\r\n\x1b[31m"}});
    EXPECT_EQ(line.find_first_of("\r\n\x1b"), std::string::npos) << line;
  }
}

TEST(Log, LongValuesAreCut) {
  const std::string line =
      FormatLine(Format::kText, Level::kInfo, kTime, "m", {{"k", std::string(100000, 'x')}});
  EXPECT_LT(line.size(), 5000u);
}

TEST(Log, TheTraceIsTheLastField) {
  EXPECT_EQ(
      FormatLine(Format::kJson, Level::kInfo, kTime, "m", {{"a", 1}}, "0af7"),
      R"({"ts":"2026-01-02T03:04:05.678Z","level":"info","message":"m","a":1,"trace_id":"0af7"})");
  EXPECT_EQ(FormatLine(Format::kText, Level::kInfo, kTime, "m", {}, "0af7"),
            "2026-01-02T03:04:05.678Z INFO m trace_id=0af7");
}

TEST(Log, TraceScopesNestAndBelongToTheirThread) {
  testing::internal::CaptureStderr();
  {
    const TraceScope outer("aaaa");
    {
      const TraceScope inner("bbbb");
      Info("inner");
      std::thread([] { Info("elsewhere"); }).join();
    }
    Info("outer");
  }
  Info("after");
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find("INFO inner trace_id=bbbb\n"), std::string::npos) << lines;
  EXPECT_NE(lines.find("INFO elsewhere\n"), std::string::npos) << lines;
  EXPECT_NE(lines.find("INFO outer trace_id=aaaa\n"), std::string::npos) << lines;
  EXPECT_NE(lines.find("INFO after\n"), std::string::npos) << lines;
}

TEST(Log, UnknownSettingsAreRefused) {
  EXPECT_TRUE(Configure("json", "debug").ok());
  EXPECT_FALSE(Configure("xml", "info").ok());
  EXPECT_FALSE(Configure("text", "loud").ok());
  EXPECT_TRUE(Configure("text", "info").ok());
}

}  // namespace
}  // namespace quantry::log
