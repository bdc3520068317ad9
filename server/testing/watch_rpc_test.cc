// Watch over real gRPC: order, resume, merging, end and drain.
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "common/errors.h"
#include "server/testing/test_server.h"

namespace quantry::server::testing {
namespace {

using WatchAnswer = v1::WatchQuantizationJobResponse;

// One open watch.
struct Stream {
  Stream(TestServer* server, const std::string& id, std::int64_t after, int min_interval_ms = 1) {
    v1::WatchQuantizationJobRequest request;
    request.set_name(NameOf(id));
    request.set_after_sequence(after);
    request.mutable_min_interval()->set_nanos(min_interval_ms * 1'000'000);
    reader = server->jobs->WatchQuantizationJob(&context, request);
  }
  // The next message that is not a keepalive; KIND_NOT_SET at the end.
  WatchAnswer Next() {
    WatchAnswer message;
    while (reader->Read(&message)) {
      if (!message.has_keepalive()) return message;
    }
    return {};
  }
  absl::Status Finish() { return FromGrpc(reader->Finish()); }

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<WatchAnswer>> reader;
};

v1::JobEvent LogEvent(const std::string& text) {
  v1::JobEvent event;
  event.mutable_log()->set_message(text);
  return event;
}

class WatchRpc : public ::testing::Test {
 protected:
  WatchRpc() : server_("watch-rpc") { server_.Start(); }
  TestServer server_;
};

TEST_F(WatchRpc, FollowsAWholeJobWithoutAGap) {
  server_.Create("job-a");
  Stream stream(&server_, "job-a", 0);
  const WatchAnswer first = stream.Next();
  ASSERT_TRUE(first.has_snapshot());
  std::int64_t sequence = first.snapshot().last_sequence();
  EXPECT_EQ(sequence, 1);

  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  ASSERT_EQ(lease.job(), NameOf("job-a"));
  worker.Beat(lease, 1, {LogEvent("one"), LogEvent("two")});
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());

  std::vector<std::string> logs;
  bool succeeded = false;
  WatchAnswer message;
  for (message = stream.Next(); message.has_event() || message.has_progress();
       message = stream.Next()) {
    if (message.has_progress()) continue;
    EXPECT_EQ(message.event().sequence(), ++sequence);
    if (message.event().has_log()) logs.push_back(message.event().log().message());
    succeeded |= message.event().state_changed().to() == v1::JOB_STATE_SUCCEEDED;
  }
  ASSERT_TRUE(message.has_end());
  EXPECT_EQ(message.end().job().state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(message.end().job().last_sequence(), sequence);
  EXPECT_TRUE(succeeded);
  EXPECT_EQ(logs, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(stream.Next().kind_case(), WatchAnswer::KIND_NOT_SET);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(WatchRpc, ResumesAfterASequence) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  std::vector<v1::JobEvent> events;
  for (int i = 0; i < 100; ++i) events.push_back(LogEvent(std::to_string(i)));
  worker.Beat(lease, 1, events);
  const std::int64_t last = server_.Get("job-a").last_sequence();
  for (const std::int64_t after : {std::int64_t{1}, std::int64_t{40}, last}) {
    Stream stream(&server_, "job-a", after);
    EXPECT_TRUE(stream.Next().has_snapshot());
    for (std::int64_t sequence = after + 1; sequence <= last; ++sequence) {
      const WatchAnswer message = stream.Next();
      ASSERT_TRUE(message.has_event());
      EXPECT_EQ(message.event().sequence(), sequence);
    }
    stream.context.TryCancel();
    EXPECT_TRUE(absl::IsCancelled(stream.Finish()));
  }
}

TEST_F(WatchRpc, AnEndedJobEndsAtOnce) {
  server_.Create("job-a");
  grpc::ClientContext context;
  v1::CancelQuantizationJobRequest cancel;
  cancel.set_name(NameOf("job-a"));
  v1::QuantizationJob job;
  ASSERT_TRUE(server_.jobs->CancelQuantizationJob(&context, cancel, &job).ok());
  Stream stream(&server_, "job-a", 0);
  EXPECT_TRUE(stream.Next().has_snapshot());
  EXPECT_TRUE(stream.Next().has_end());
  EXPECT_TRUE(stream.Finish().ok());
}

// 0: the interval there is without one.
class WatchIntervals : public WatchRpc, public ::testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Milliseconds, WatchIntervals, ::testing::Values(0, 300));

TEST_P(WatchIntervals, ProgressIsMergedToTheLatest) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  // A long interval: of 200 updates only the first windows' latest get through.
  Stream stream(&server_, "job-a", 0, /*min_interval_ms=*/GetParam());
  EXPECT_TRUE(stream.Next().has_snapshot());
  for (int step = 1; step <= 200; ++step) worker.Beat(lease, step);
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
  int progress = 0;
  WatchAnswer message;
  for (message = stream.Next(); !message.has_end(); message = stream.Next()) {
    ASSERT_NE(message.kind_case(), WatchAnswer::KIND_NOT_SET);
    progress += message.has_progress();
  }
  EXPECT_LT(progress, 50);
  EXPECT_EQ(message.end().job().progress().steps_done(), 200);
}

TEST_F(WatchRpc, ManyWatchersSeeTheSame) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  std::vector<std::future<std::int64_t>> watchers;
  for (int i = 0; i < 50; ++i) {
    watchers.push_back(std::async(std::launch::async, [this] {
      Stream stream(&server_, "job-a", 1);
      std::int64_t sequence = 1;
      for (WatchAnswer m = stream.Next(); m.kind_case() != WatchAnswer::KIND_NOT_SET;
           m = stream.Next()) {
        if (m.has_event() && m.event().sequence() != ++sequence) return std::int64_t{-1};
      }
      return stream.Finish().ok() ? sequence : -2;
    }));
  }
  for (int i = 0; i < 20; ++i) worker.Beat(lease, i + 1, {LogEvent("x")}, i);
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
  const std::int64_t last = server_.Get("job-a").last_sequence();
  for (auto& watcher : watchers) EXPECT_EQ(watcher.get(), last);
  EXPECT_EQ(server_.Metric("quantry_watch_streams"), 0);
}

TEST_F(WatchRpc, WatchersOfOneJobShareWhatIsRead) {
  constexpr int kWatchers = 80;
  const FakeWorker worker(&server_, "w1");  // or the job is told that it waits for one
  server_.Create("job-a");
  std::vector<std::unique_ptr<Stream>> watchers;
  for (int i = 0; i < kWatchers; ++i) {
    watchers.push_back(std::make_unique<Stream>(&server_, "job-a", 0));
    ASSERT_TRUE(watchers.back()->Next().has_snapshot());
  }
  const auto reads = [this] {
    return server_.Metric("quantry_store_op_seconds_count{op=\"get\"}") +
           server_.Metric("quantry_store_op_seconds_count{op=\"events\"}");
  };
  const double before = reads();
  grpc::ClientContext context;
  v1::CancelQuantizationJobRequest cancel;
  cancel.set_name(NameOf("job-a"));
  v1::QuantizationJob job;
  ASSERT_TRUE(server_.jobs->CancelQuantizationJob(&context, cancel, &job).ok());
  for (const auto& watcher : watchers) {
    EXPECT_EQ(watcher->Next().event().state_changed().to(), v1::JOB_STATE_CANCELLED);
    EXPECT_TRUE(watcher->Next().has_end());
  }
  EXPECT_LT(reads() - before, 2 * kWatchers) << "each for itself: three times as many";
}

// Ids can be used again: a watch is of a job, not of its name.
TEST_F(WatchRpc, AnotherJobOfTheSameNameIsNotWatched) {
  server_.Create("job-a");
  Stream slow(&server_, "job-a", 0);  // keeps what is shared
  Stream watch(&server_, "job-a", 0);
  EXPECT_TRUE(slow.Next().has_snapshot());
  EXPECT_TRUE(watch.Next().has_snapshot());
  grpc::ClientContext cancel_context;
  v1::CancelQuantizationJobRequest cancel;
  cancel.set_name(NameOf("job-a"));
  v1::QuantizationJob job;
  ASSERT_TRUE(server_.jobs->CancelQuantizationJob(&cancel_context, cancel, &job).ok());
  EXPECT_TRUE(watch.Next().has_event());
  grpc::ClientContext delete_context;
  v1::DeleteQuantizationJobRequest remove;
  remove.set_name(NameOf("job-a"));
  google::protobuf::Empty none;
  ASSERT_TRUE(server_.jobs->DeleteQuantizationJob(&delete_context, remove, &none).ok());
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  ASSERT_EQ(worker.Acquire().job(), NameOf("job-a"));
  Stream fresh(&server_, "job-a", 1);
  EXPECT_TRUE(fresh.Next().has_snapshot());
  EXPECT_EQ(fresh.Next().event().state_changed().to(), v1::JOB_STATE_RUNNING);
  fresh.context.TryCancel();
}

TEST_F(WatchRpc, AQuotaOfTheTenantLimitsThem) {
  server_.Create("job-a");
  grpc::ClientContext context;
  v1::SetQuotaRequest request;
  request.set_parent("tenants/acme");
  request.set_max_watches(2);
  v1::SetQuotaResponse usage;
  ASSERT_TRUE(FromGrpc(server_.admin->SetQuota(&context, request, &usage)).ok());
  std::vector<std::unique_ptr<Stream>> open;
  for (int i = 0; i < 2; ++i) {
    open.push_back(std::make_unique<Stream>(&server_, "job-a", 0));
    EXPECT_TRUE(open.back()->Next().has_snapshot()) << i;
  }
  Stream third(&server_, "job-a", 0);
  EXPECT_EQ(third.Next().kind_case(), WatchAnswer::KIND_NOT_SET);
  const absl::Status refused = third.Finish();
  EXPECT_TRUE(HasReason(refused, Reason::kQuotaWatches)) << refused;
  EXPECT_TRUE(RetryAfterOf(refused).has_value());
  open[0]->context.TryCancel();
  while (open[0]->Next().kind_case() != WatchAnswer::KIND_NOT_SET) {
  }
  // Its place is free once the server has seen it go.
  while (true) {
    Stream again(&server_, "job-a", 0);
    if (again.Next().has_snapshot()) break;
  }
}

TEST_F(WatchRpc, MistakesAreAnswered) {
  Stream unknown(&server_, "nobody", 0);
  EXPECT_EQ(unknown.Next().kind_case(), WatchAnswer::KIND_NOT_SET);
  EXPECT_TRUE(HasReason(unknown.Finish(), Reason::kJobNotFound));
  server_.Create("job-a");
  Stream beyond(&server_, "job-a", 1000);
  beyond.Next();
  EXPECT_TRUE(HasReason(beyond.Finish(), Reason::kEventsCompacted));
  Stream negative(&server_, "job-a", -1);
  negative.Next();
  EXPECT_TRUE(HasReason(negative.Finish(), Reason::kInvalidArgument));
}

TEST_F(WatchRpc, DrainEndsStreamsWithUnavailable) {
  server_.Create("job-a");
  Stream stream(&server_, "job-a", 0);
  EXPECT_TRUE(stream.Next().has_snapshot());
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  std::thread drain([this] { server_.app().Drain(); });
  WatchAnswer message;
  do {
    message = stream.Next();
  } while (message.kind_case() != WatchAnswer::KIND_NOT_SET);
  const absl::Status status = stream.Finish();
  drain.join();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(HasReason(status, Reason::kServerDraining));
  server_.Stop();
  server_.Start();
  // The other side goes on where it was.
  Stream resumed(&server_, "job-a", 1);
  EXPECT_TRUE(resumed.Next().has_snapshot());
  EXPECT_EQ(resumed.Next().event().sequence(), 2);
  resumed.context.TryCancel();
  resumed.Finish().IgnoreError();
}

}  // namespace
}  // namespace quantry::server::testing
