#include "worker/agent/job_session.h"

#include <limits>

#include "absl/strings/match.h"
#include "common/errors.h"
#include "google/protobuf/util/time_util.h"
#include "gtest/gtest.h"
#include "worker/agent/engine_runner.h"
#include "worker/agent/failure.h"
#include "worker/agent/utf8.h"

namespace quantry::agent {
namespace {

using google::protobuf::util::TimeUtil;
using std::chrono::milliseconds;
using std::chrono::seconds;

class JobSessionTest : public testing::Test {
 protected:
  JobSessionTest() {
    lease_.set_job("tenants/t/quantizationJobs/job-1");
    lease_.set_epoch(7);
    lease_.mutable_ttl()->set_seconds(10);
  }
  v1::JobDirective Answer(v1::Directive directive, int next_event) {
    v1::JobDirective answer;
    answer.set_job(lease_.job());
    answer.set_epoch(7);
    answer.set_directive(directive);
    answer.mutable_ttl()->set_seconds(10);
    answer.set_next_event_offset(next_event);
    return answer;
  }
  v1::Lease lease_;
  const MonotonicTime start_ = std::chrono::steady_clock::now();
};

TEST_F(JobSessionTest, EventsKeepTheirNumbersUntilConfirmed) {
  JobSession session(lease_, start_);
  session.EnterStage(v1::STAGE_FETCHING);
  session.EnterStage(v1::STAGE_LOADING);
  EXPECT_EQ(session.MakeBeat().event_offset(), 0);
  EXPECT_EQ(session.MakeBeat().events_size(), 2);
  session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, 1), start_);
  EXPECT_EQ(session.MakeBeat().event_offset(), 1);
  EXPECT_EQ(session.MakeBeat().events_size(), 1);
  session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, 99), start_);  // more than there are
  EXPECT_FALSE(session.HasEvents());
  session.AddBlock({});
  EXPECT_EQ(session.MakeBeat().event_offset(), 2);
}

TEST_F(JobSessionTest, AnswersForAnotherEpochAreIgnored) {
  JobSession session(lease_, start_);
  auto answer = Answer(v1::DIRECTIVE_CANCEL, 5);
  answer.set_epoch(6);
  session.OnAnswer(answer, start_ + seconds(5));
  EXPECT_EQ(session.stop_reason(start_), StopReason::kNone);
}

// A name may be another job's by the time an answer comes, in an epoch of the same number.
TEST_F(JobSessionTest, AnswersForAnotherJobOfTheNameAreIgnored) {
  lease_.set_job_uid("uid-1");
  JobSession session(lease_, start_);
  EXPECT_EQ(session.MakeBeat().job_uid(), "uid-1");
  auto answer = Answer(v1::DIRECTIVE_LOST, 0);
  answer.set_job_uid("uid-2");
  session.OnAnswer(answer, start_);
  EXPECT_EQ(session.stop_reason(start_), StopReason::kNone);
  for (const char* uid : {"", "uid-1"}) {  // "": an older server
    JobSession other(lease_, start_);
    answer.set_job_uid(uid);
    other.OnAnswer(answer, start_);
    EXPECT_EQ(other.stop_reason(start_), StopReason::kLost);
  }
}

TEST_F(JobSessionTest, LeaseCountsFromTheSendTimeOfAnsweredBeats) {
  JobSession session(lease_, start_);
  const auto margin = seconds(2);  // a fifth of 10 s
  EXPECT_EQ(session.stop_reason(start_ + seconds(10) - margin - milliseconds(1)),
            StopReason::kNone);
  EXPECT_EQ(session.stop_reason(start_ + seconds(10) - margin), StopReason::kLost);
  session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, 0), start_ + seconds(3));
  EXPECT_EQ(session.stop_reason(start_ + seconds(10)), StopReason::kNone);
  EXPECT_EQ(session.stop_reason(start_ + seconds(11)), StopReason::kLost);
  // An answer that overtakes a newer one does not shorten the lease.
  session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, 0), start_ + seconds(1));
  EXPECT_EQ(session.stop_reason(start_ + seconds(10)), StopReason::kNone);
}

TEST_F(JobSessionTest, AnAttemptGoesOnWhileTheStoreIsAway) {
  JobSession session(lease_, start_);
  MonotonicTime at = start_;
  for (; at < start_ + seconds(600); at += seconds(5)) session.OnStoreAway(at);
  EXPECT_EQ(session.stop_reason(start_ + seconds(600)), StopReason::kNone);
  // Ten minutes after the lease the server last told of, and two seconds less as always.
  session.OnStoreAway(at);
  session.OnStoreAway(at + seconds(5));
  EXPECT_EQ(session.stop_reason(start_ + seconds(607)), StopReason::kNone);
  EXPECT_EQ(session.stop_reason(start_ + seconds(608)), StopReason::kLost);
  // Back: the lease is what the server says, and who lost it stops.
  session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, 0), start_ + seconds(605));
  EXPECT_EQ(session.stop_reason(start_ + seconds(612)), StopReason::kNone);
  EXPECT_EQ(session.stop_reason(start_ + seconds(613)), StopReason::kLost);
  session.OnAnswer(Answer(v1::DIRECTIVE_LOST, 0), start_ + seconds(606));
  EXPECT_EQ(session.stop_reason(start_ + seconds(607)), StopReason::kLost);
}

TEST_F(JobSessionTest, StopReasonsOnlyRise) {
  JobSession session(lease_, start_);
  session.Stop(StopReason::kRelease);
  EXPECT_TRUE(session.CheckRunning().ok());
  session.OnAnswer(Answer(v1::DIRECTIVE_CANCEL, 0), start_);
  session.Stop(StopReason::kReleaseNow);
  EXPECT_EQ(session.stop_reason(start_), StopReason::kCancel);
  EXPECT_TRUE(absl::IsCancelled(session.CheckRunning()));
  session.OnAnswer(Answer(v1::DIRECTIVE_LOST, 0), start_);
  EXPECT_EQ(session.stop_reason(start_), StopReason::kLost);
}

TEST_F(JobSessionTest, ProgressNeverFallsAndKeepsStages) {
  JobSession session(lease_, start_);
  session.EnterStage(v1::STAGE_FETCHING);
  session.SetMetric("fetched_bytes", 5);
  v1::JobProgress progress;
  progress.set_ratio(0.5);
  progress.set_steps_done(10);
  session.MergeProgress(progress);
  progress.set_ratio(0.25);
  progress.set_steps_done(5);
  session.MergeProgress(progress);
  session.EnterStage(v1::STAGE_LOADING);
  session.EnterStage(v1::STAGE_FETCHING);  // again: no second row
  const auto now = session.progress();
  EXPECT_EQ(now.ratio(), 0.5);
  EXPECT_EQ(now.steps_done(), 10);
  EXPECT_EQ(now.metrics().at("fetched_bytes"), 5);
  ASSERT_EQ(now.stage_times_size(), 2);
  EXPECT_FALSE(now.stage_times(0).has_end_time());
  EXPECT_TRUE(now.stage_times(1).has_end_time());
}

// One metric the server refuses would cost all jobs of the worker their leases.
TEST_F(JobSessionTest, OddMetricsOfAnEngineAreDropped) {
  JobSession session(lease_, start_);
  session.SetMetric("fetched_bytes", 5);
  v1::JobProgress progress;
  progress.set_ratio(std::numeric_limits<double>::quiet_NaN());
  auto& metrics = *progress.mutable_metrics();
  metrics["loss"] = std::numeric_limits<double>::quiet_NaN();
  metrics["scale"] = std::numeric_limits<double>::infinity();
  metrics[std::string(300, 'n')] = 1;
  metrics["fine"] = 2;
  session.MergeProgress(progress);
  auto now = session.progress();
  EXPECT_EQ(now.ratio(), 0);
  EXPECT_EQ(now.metrics_size(), 2);
  EXPECT_EQ(now.metrics().at("fine"), 2);
  EXPECT_EQ(now.metrics().at("fetched_bytes"), 5);
  for (int i = 0; i < 200; ++i) metrics["m" + std::to_string(i)] = i;
  session.MergeProgress(progress);
  EXPECT_EQ(session.progress().metrics_size(), 64);
}

TEST_F(JobSessionTest, HugeEventsAndManyOfThemAreBounded) {
  JobSession session(lease_, start_);
  v1::BlockReport block;
  block.set_index(7);
  for (int i = 0; i < 20000; ++i) (*block.mutable_metrics())["metric-" + std::to_string(i)] = i;
  session.AddBlock(block);
  v1::JobBeat beat = session.MakeBeat();
  ASSERT_EQ(beat.events_size(), 1);
  EXPECT_EQ(beat.events(0).block_done().index(), 7);
  EXPECT_LT(beat.ByteSizeLong(), JobSession::kMaxEventBytes);
  EXPECT_EQ(session.MakeBeat(/*room=*/10).events_size(), 0);
  session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, 1), start_);

  block.clear_metrics();
  for (int i = 0; i < 1000; ++i) (*block.mutable_metrics())["metric-" + std::to_string(i)] = i;
  for (int i = 0; i < 800; ++i) session.AddBlock(block);
  std::int64_t bytes = 0;
  int next = 1;
  while (session.HasEvents()) {
    beat = session.MakeBeat();
    ASSERT_GT(beat.events_size(), 0);
    for (const v1::JobEvent& event : beat.events()) {
      bytes += static_cast<std::int64_t>(event.ByteSizeLong());
    }
    session.OnAnswer(Answer(v1::DIRECTIVE_CONTINUE, next += beat.events_size()), start_);
  }
  EXPECT_LE(bytes, static_cast<std::int64_t>(JobSession::kMaxPendingBytes));
  session.AddBlock(block);
  EXPECT_TRUE(session.HasEvents()) << "there is room again";
}

TEST_F(JobSessionTest, LogsAndBeatsAreBounded) {
  JobSession session(lease_, start_);
  for (int i = 0; i < 2000; ++i) {
    session.AddLog(v1::LogLine::LEVEL_INFO, std::string(10000, 'x'));
  }
  const auto last = session.MakeLastBeat();
  EXPECT_GT(last.ByteSizeLong(), JobSession::kMaxLastBytes - 10000);
  EXPECT_LT(last.ByteSizeLong(), JobSession::kMaxLastBytes + 10000);
  EXPECT_TRUE(session.HasMoreThanLastBeat());
  const auto beat = session.MakeBeat();
  EXPECT_GT(beat.ByteSizeLong(), JobSession::kMaxBeatBytes - 10000);
  EXPECT_LT(beat.ByteSizeLong(), JobSession::kMaxBeatBytes + 10000);
  EXPECT_EQ(beat.events(0).log().message().size(), 4096u);
}

TEST_F(JobSessionTest, ManyShortLinesAreBoundedByNumber) {
  JobSession session(lease_, start_);
  for (int i = 0; i < 2000; ++i) session.AddLog(v1::LogLine::LEVEL_INFO, "line");
  EXPECT_EQ(session.MakeLastBeat().events_size(), JobSession::kMaxLastEvents);
  EXPECT_EQ(session.MakeBeat().events_size(), JobSession::kMaxEventsPerBeat);
}

TEST_F(JobSessionTest, ALogLineIsCutBetweenCharacters) {
  JobSession session(lease_, start_);
  std::string text = "x";
  while (text.size() < 5000) text += "\u044f";
  session.AddLog(v1::LogLine::LEVEL_INFO, text);
  const v1::JobBeat beat = session.MakeBeat();
  EXPECT_EQ(beat.events(0).log().message().size(), 4095u);
  v1::JobBeat parsed;
  EXPECT_TRUE(parsed.ParseFromString(beat.SerializeAsString())) << "the server reads it";
}

TEST(EngineContractTest, EventsTable) {
  const struct {
    const char* line;
    bool ok;
    v1::EngineEvent::KindCase kind;
  } cases[] = {
      {R"({"stage":"STAGE_LOADING"})", true, v1::EngineEvent::kStage},
      {R"({"block_done":{"index":3,"loss_final":0.5}})", true, v1::EngineEvent::kBlockDone},
      {R"({"blockDone":{"index":3}})", true, v1::EngineEvent::kBlockDone},
      {R"({"progress":{"steps_done":"12345678901","steps_total":7}})", true,
       v1::EngineEvent::kProgress},
      {R"({"progress":{"from_the_future":1,"eta":"1.5s"}})", true, v1::EngineEvent::kProgress},
      {R"({"tomorrow":{}})", true, v1::EngineEvent::KIND_NOT_SET},
      {"{", false, v1::EngineEvent::KIND_NOT_SET},
      {"[]", false, v1::EngineEvent::KIND_NOT_SET},
      {"hello", false, v1::EngineEvent::KIND_NOT_SET},
      {R"({"started":7})", false, v1::EngineEvent::KIND_NOT_SET},
  };
  for (const auto& c : cases) {
    const auto event = ParseEngineEvent(c.line);
    ASSERT_EQ(event.ok(), c.ok) << c.line << event.status();
    if (c.ok) {
      EXPECT_EQ(event->kind_case(), c.kind) << c.line;
    }
  }
}

TEST(EngineContractTest, ExitsTable) {
  const struct {
    int code;
    int signal;
    bool oom;
    v1::FailureClass failure_class;
    const char* reason;
  } cases[] = {
      {0, 9, true, v1::FAILURE_CLASS_RESOURCE, "OUT_OF_MEMORY"},
      {0, 9, false, v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED"},
      {0, 11, true, v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED"},
      {127, 0, false, v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED"},
      {1, 0, false, v1::FAILURE_CLASS_BUG, "ENGINE_PROTOCOL"},
      {0, 0, false, v1::FAILURE_CLASS_BUG, "ENGINE_PROTOCOL"},
  };
  for (const auto& c : cases) {
    const auto error = ClassifyExit(c.code, c.signal, c.oom, "first\nlast line\n");
    EXPECT_EQ(error.failure_class(), c.failure_class) << c.code << " " << c.signal;
    EXPECT_EQ(error.reason(), c.reason) << c.code << " " << c.signal;
    EXPECT_NE(error.message().find("last line"), std::string::npos);
    EXPECT_TRUE(IsRetryable(error));
  }
}

TEST(EngineContractTest, LogTailsFitIntoTheirCall) {
  std::string message = "x";
  while (message.size() < 9000) message += "\u044f";
  EXPECT_EQ(BoundedLogTail("one\ntwo\n"), "one\ntwo\n");
  const std::string tail = BoundedLogTail(message + message + "end!");
  EXPECT_EQ(tail.size(), std::size_t{16} << 10);
  EXPECT_EQ(tail, ToValidUtf8(tail));
  EXPECT_TRUE(tail.ends_with("end!"));
}

TEST(EngineContractTest, MethodNames) {
  EXPECT_EQ(*MethodNames(R"({"methods":[{"name":"rtn"},{"name":"awq"}],"architectures":["x"]})"),
            (std::vector<std::string>{"rtn", "awq"}));
  for (const char* bad : {"", "rtn\nawq\n", "{}", R"({"methods":[]})"}) {
    EXPECT_FALSE(MethodNames(bad).ok()) << bad;
  }
}

TEST(EngineContractTest, FindsTheDeviceOfAWorker) {
  constexpr char kTwo[] = R"({"devices":["cpu","cuda:0","cuda:1"]})";
  EXPECT_TRUE(FindDevice("cuda", kTwo).ok());
  EXPECT_TRUE(FindDevice("cuda:1", kTwo).ok());
  const absl::Status third = FindDevice("cuda:2", kTwo);
  EXPECT_TRUE(HasReason(third, Reason::kDeviceUnavailable));
  EXPECT_TRUE(absl::StrContains(third.message(), "(cpu, cuda:0, cuda:1)")) << third;
  const absl::Status none = FindDevice("cuda", R"({"devices":["cpu"],"cuda_problem":"no driver"})");
  EXPECT_TRUE(absl::StrContains(none.message(), "no driver")) << none;
  for (const char* bad : {"", "cpu", "[]"}) {
    EXPECT_TRUE(HasReason(FindDevice("cuda", bad), Reason::kEngineProtocol)) << bad;
  }
}

TEST(Utf8Test, Table) {
  const struct {
    std::string text;
    std::string valid;
  } cases[] = {
      {"plain", "plain"},
      {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
      {"a\xff"
       "b",
       "a?b"},
      {"\xc3", "?"},
      {"\xc0\x80", "??"},
      {"\xed\xa0\x80", "???"},
      {"\xf5\x80\x80\x80", "????"},
      {"\xe2\x82", "??"},
  };
  for (const auto& c : cases) EXPECT_EQ(ToValidUtf8(c.text), c.valid);
}

}  // namespace
}  // namespace quantry::agent
