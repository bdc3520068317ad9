#include "server/rpc/convert.h"

#include <limits>

#include "common/errors.h"
#include "gtest/gtest.h"
#include "server/rpc/engine_tool.h"

namespace quantry::server {
namespace {

TEST(Convert, TimesKeepMicroseconds) {
  const auto before = ToProto(FromUnixMicros(-1));
  EXPECT_EQ(before.seconds(), -1);
  EXPECT_EQ(before.nanos(), 999'999'000);
  EXPECT_EQ(ToProto(FromUnixMicros(1'500'000)).nanos(), 500'000'000);
}

TEST(Convert, DurationsSaturate) {
  google::protobuf::Duration huge;
  huge.set_seconds(std::numeric_limits<std::int64_t>::max());
  EXPECT_GT(FromProto(huge), Duration::zero());
  huge.set_seconds(std::numeric_limits<std::int64_t>::min());
  EXPECT_LT(FromProto(huge), Duration::zero());
  EXPECT_EQ(FromProto(ToProto(std::chrono::milliseconds(1500))), std::chrono::milliseconds(1500));
}

TEST(Convert, JobShowsWhatItHas) {
  Job job;
  job.key = {"acme", "my-job"};
  job.uid = "123e4567-e89b-42d3-a456-426614174000";
  job.state = JobState::kSucceeded;
  job.create_time = FromUnixMicros(1'000'000);
  job.start_time = FromUnixMicros(3'500'000);
  job.has_artifact = true;
  job.artifact_uid = "00000000-0000-4000-8000-000000000001";  // of the job that made it
  job.result.emplace();
  const v1::QuantizationJob proto = ToProto(job);
  EXPECT_EQ(proto.name(), "tenants/acme/quantizationJobs/my-job");
  EXPECT_EQ(proto.artifact(), "tenants/acme/artifacts/" + job.artifact_uid);
  EXPECT_EQ(proto.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_DOUBLE_EQ(proto.result().timing().queue_s(), 2.5);
  EXPECT_FALSE(proto.has_error());
  EXPECT_FALSE(proto.has_end_time());
}

TEST(Convert, BeatsAreBounded) {
  v1::JobBeat beat;
  beat.set_job("tenants/acme/quantizationJobs/my-job");
  beat.set_epoch(3);
  beat.add_events()->mutable_stage_changed()->set_stage(v1::STAGE_LOADING);
  ASSERT_TRUE(FromProto(beat).ok());
  EXPECT_EQ(FromProto(beat)->events.events.size(), 1u);

  v1::JobBeat bad = beat;
  bad.set_event_offset(-1);
  EXPECT_FALSE(FromProto(bad).ok());
  bad = beat;
  bad.mutable_events(0)->mutable_state_changed();
  EXPECT_FALSE(FromProto(bad).ok());
  bad = beat;
  bad.add_events();  // of no kind
  EXPECT_FALSE(FromProto(bad).ok());
  bad = beat;
  for (int i = 0; i < 1001; ++i) bad.add_events()->mutable_log();
  EXPECT_FALSE(FromProto(bad).ok());
  bad = beat;
  (*bad.mutable_progress()->mutable_metrics())["x"] = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(FromProto(bad).ok());
  bad = beat;
  for (int i = 0; i < 65; ++i) (*bad.mutable_progress()->mutable_metrics())[std::to_string(i)] = 1;
  EXPECT_FALSE(FromProto(bad).ok());
  bad = beat;
  bad.set_job("my-job");
  EXPECT_TRUE(HasReason(FromProto(bad).status(), Reason::kInvalidName));
}

TEST(Convert, LongLogLinesAreCutBetweenCharacters) {
  google::protobuf::RepeatedPtrField<v1::JobEvent> events;
  std::string text(16383, 'a');
  for (int i = 0; i < 100; ++i) text += "\xc3\xa9";  // two bytes each
  events.Add()->mutable_log()->set_message(text);
  const auto taken = EventsFromProto(0, events);
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->events[0].log().message().size(), 16383u);
}

TEST(Capabilities, ParsesWhatTheEnginePrints) {
  const auto parsed = ParseCapabilities(
      R"({"methods": [{"name": "rtn", "bits": [4], "later": 1}], "architectures": ["llama"],
          "engine_version": "9"})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->methods[0].name(), "rtn");
  EXPECT_EQ(parsed->architectures, std::vector<std::string>{"llama"});
  EXPECT_EQ(parsed->version, "9");
}

TEST(Capabilities, NonsenseIsRefused) {
  for (const char* json : {"", "[]", "{}", "{\"methods\": []}", "{\"methods\": 1}", "Segfault"}) {
    EXPECT_TRUE(HasReason(ParseCapabilities(json).status(), Reason::kEngineProtocol)) << json;
  }
}

}  // namespace
}  // namespace quantry::server
