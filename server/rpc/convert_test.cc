#include "server/rpc/convert.h"

#include <functional>
#include <limits>
#include <string>

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

v1::JobBeat GoodBeat() {
  v1::JobBeat beat;
  beat.set_job("tenants/acme/quantizationJobs/my-job");
  beat.set_epoch(3);
  beat.mutable_progress()->set_steps_done(7);
  (*beat.mutable_progress()->mutable_metrics())["loss"] = 0.5;
  beat.add_events()->mutable_stage_changed()->set_stage(v1::STAGE_LOADING);
  return beat;
}

TEST(Convert, AGoodBeatIsTakenWhole) {
  Violations left_out;
  const auto taken = FromProto(GoodBeat(), &left_out);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_TRUE(left_out.empty());
  EXPECT_EQ(taken->job, (JobKey{"acme", "my-job"}));
  EXPECT_EQ(taken->epoch, 3);
  EXPECT_EQ(taken->progress.steps_done(), 7);
  EXPECT_EQ(taken->progress.metrics().at("loss"), 0.5);
  EXPECT_EQ(taken->events.events.size(), 1u);
}

struct BadBeatCase {
  std::string name;
  std::function<void(v1::JobBeat*)> spoil;
  std::string field;  // told as left out
  std::string description;
  size_t events = 1;   // taken
  size_t metrics = 1;  // taken
};

class BadBeats : public testing::TestWithParam<BadBeatCase> {};

TEST_P(BadBeats, OnlyTheBadPartIsLeftOut) {
  v1::JobBeat beat = GoodBeat();
  GetParam().spoil(&beat);
  Violations left_out;
  const auto taken = FromProto(beat, &left_out);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->job, (JobKey{"acme", "my-job"}));
  EXPECT_EQ(taken->epoch, 3);
  EXPECT_EQ(taken->progress.steps_done(), 7);
  EXPECT_EQ(taken->progress.metrics().size(), GetParam().metrics);
  EXPECT_EQ(taken->events.events.size(), GetParam().events);
  ASSERT_EQ(left_out.first().size(), 1u);
  EXPECT_EQ(left_out.first()[0].field, GetParam().field);
  EXPECT_EQ(left_out.first()[0].description, GetParam().description);
}

INSTANTIATE_TEST_SUITE_P(
    Convert, BadBeats,
    testing::Values(
        BadBeatCase{.name = "InfiniteMetric",
                    .spoil =
                        [](v1::JobBeat* beat) {
                          (*beat->mutable_progress()->mutable_metrics())["x"] =
                              std::numeric_limits<double>::infinity();
                        },
                    .field = "progress.metrics[x]",
                    .description = "wanted a finite value, got inf"},
        BadBeatCase{.name = "LongMetricName",
                    .spoil =
                        [](v1::JobBeat* beat) {
                          (*beat->mutable_progress()->mutable_metrics())[std::string(257, 'x')] = 1;
                        },
                    .field = "progress.metrics",
                    .description = "wanted names of at most 256 bytes, got 257 bytes: " +
                                   std::string(69, 'x')},
        BadBeatCase{.name = "TooManyMetrics",
                    .spoil =
                        [](v1::JobBeat* beat) {
                          for (int i = 0; i < 64; ++i) {
                            (*beat->mutable_progress()->mutable_metrics())[std::to_string(i)] = 1;
                          }
                        },
                    .field = "progress.metrics",
                    .description = "wanted at most 64 entries, got 65",
                    .metrics = 64},
        BadBeatCase{.name = "NegativeOffset",
                    .spoil = [](v1::JobBeat* beat) { beat->set_event_offset(-1); },
                    .field = "event_offset",
                    .description = "wanted 0 or more, got -1",
                    .events = 0},
        BadBeatCase{.name = "TooManyEvents",
                    .spoil =
                        [](v1::JobBeat* beat) {
                          for (int i = 0; i < 1000; ++i) beat->add_events()->mutable_log();
                        },
                    .field = "events",
                    .description = "wanted at most 1000 of a call, got 1001",
                    .events = 1000},
        BadBeatCase{.name = "StateChange",
                    .spoil = [](v1::JobBeat* beat) { beat->add_events()->mutable_state_changed(); },
                    .field = "events[1]",
                    .description = "wanted a kind that workers report, got state_changed",
                    .events = 2},
        BadBeatCase{.name = "EventOfNoKind",
                    .spoil = [](v1::JobBeat* beat) { beat->add_events(); },
                    .field = "events[1]",
                    .description = "wanted a kind that workers report, got none that is known here",
                    .events = 2},
        BadBeatCase{.name = "MetricOfAnEvent",
                    .spoil =
                        [](v1::JobBeat* beat) {
                          (*beat->add_events()->mutable_progress()->mutable_metrics())["x"] =
                              std::numeric_limits<double>::quiet_NaN();
                        },
                    .field = "events[1].progress.metrics[x]",
                    .description = "wanted a finite value, got nan",
                    .events = 2}),
    [](const auto& each) { return each.param.name; });

TEST(Convert, OfTooManyMetricsTheSameStay) {
  v1::JobBeat beat = GoodBeat();
  auto& metrics = *beat.mutable_progress()->mutable_metrics();
  metrics.clear();
  for (int i = 100; i < 200; ++i) metrics[std::to_string(i)] = i;
  Violations left_out;
  const auto taken = FromProto(beat, &left_out);
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->progress.metrics().size(), 64u);
  EXPECT_TRUE(taken->progress.metrics().contains("163"));
  EXPECT_FALSE(taken->progress.metrics().contains("164"));
}

TEST(Convert, ABeatOfNoJobIsInvalid) {
  v1::JobBeat beat = GoodBeat();
  beat.set_job("my-job");
  Violations left_out;
  EXPECT_TRUE(HasReason(FromProto(beat, &left_out).status(), Reason::kInvalidName));
}

// The calls that end an attempt have no next one for what they leave out.
TEST(Convert, LastEventsAreAllTakenOrNone) {
  google::protobuf::RepeatedPtrField<v1::JobEvent> events;
  for (int i = 0; i < 1000; ++i) events.Add()->mutable_log();
  events.Mutable(3)->clear_kind();
  Violations left_out;
  const auto taken = EventsFromProto(0, events, &left_out);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->events.size(), 1000u) << "a bad one keeps its number";
  ASSERT_EQ(left_out.first().size(), 1u);
  EXPECT_EQ(left_out.first()[0].field, "events[3]");
  EXPECT_TRUE(HasReason(EventsFromProto(-1, events, &left_out).status(), Reason::kInvalidArgument));
  events.Add()->mutable_log();
  EXPECT_TRUE(HasReason(EventsFromProto(0, events, &left_out).status(), Reason::kInvalidArgument));
}

TEST(Convert, AWorkersWordsAreShortAndCanBeShown) {
  const auto good = [] {
    v1::WorkerInfo worker;
    worker.set_worker_id("gpu-box 1");
    worker.set_incarnation("2f");
    worker.set_version("0.1.0");
    worker.add_methods("rtn");
    worker.add_gpus()->set_model("NVIDIA H100");
    return worker;
  };
  EXPECT_TRUE(CheckWorkerInfo(good()).ok());
  const std::string zero("w1\0", 3);
  const std::string long_word(257, 'x');
  const struct {
    void (*set)(v1::WorkerInfo*, const std::string&);
    std::string text, told;
  } cases[] = {
      {[](auto* w, auto& text) { w->set_worker_id(text); }, "", "worker_id"},
      {[](auto* w, auto& text) { w->set_worker_id(text); }, long_word, "worker.worker_id: "},
      {[](auto* w, auto& text) { w->set_worker_id(text); }, zero, "worker.worker_id: "},
      {[](auto* w, auto& text) { w->set_worker_id(text); }, "w\u202e1", "worker.worker_id: "},
      {[](auto* w, auto& text) { w->set_incarnation(text); }, "", "incarnation"},
      {[](auto* w, auto& text) { w->set_incarnation(text); }, "a\nb", "worker.incarnation: "},
      {[](auto* w, auto& text) { w->set_version(text); }, long_word, "worker.version: "},
      {[](auto* w, auto& text) { w->set_engine_version(text); }, long_word,
       "worker.engine_version: "},
      {[](auto* w, auto& text) { w->add_methods(text); }, long_word, "worker.methods: "},
      {[](auto* w, auto& text) { w->add_gpus()->set_uuid(text); }, long_word, "worker.gpus.uuid: "},
      {[](auto* w, auto& text) { w->add_gpus()->set_model(text); }, "\x1b[2J",
       "worker.gpus.model: "},
      {[](auto* w, auto& text) { w->add_gpus()->set_compute_capability(text); }, long_word,
       "worker.gpus.compute_capability: "},
  };
  for (const auto& c : cases) {
    v1::WorkerInfo worker = good();
    c.set(&worker, c.text);
    const absl::Status status = CheckWorkerInfo(worker);
    EXPECT_TRUE(HasReason(status, Reason::kInvalidArgument)) << c.told << c.text;
    EXPECT_NE(status.message().find(c.told), std::string::npos) << status;
  }
}

TEST(Convert, LongLogLinesAreCutBetweenCharacters) {
  google::protobuf::RepeatedPtrField<v1::JobEvent> events;
  std::string text(16383, 'a');
  for (int i = 0; i < 100; ++i) text += "\xc3\xa9";  // two bytes each
  events.Add()->mutable_log()->set_message(text);
  Violations left_out;
  const auto taken = EventsFromProto(0, events, &left_out);
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
