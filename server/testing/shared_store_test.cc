// Two servers on one PostgreSQL over real gRPC: any of them answers any worker
// and any watch.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "server/testing/test_server.h"
#include "tests/support/postgres_server.h"

namespace quantry::server::testing {
namespace {

using Message = v1::WatchQuantizationJobResponse;
using quantry::testing::PostgresServer;

struct Stream {
  Stream(TestServer* server, const std::string& id, std::int64_t after) {
    v1::WatchQuantizationJobRequest request;
    request.set_name(NameOf(id));
    request.set_after_sequence(after);
    reader = server->jobs->WatchQuantizationJob(&context, request);
  }
  // The next message that is not a keepalive or progress; KIND_NOT_SET at the end.
  Message Next() {
    Message message;
    while (reader->Read(&message)) {
      if (!message.has_keepalive() && !message.has_progress()) return message;
    }
    return {};
  }

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<Message>> reader;
};

v1::JobEvent LogEvent(const std::string& text) {
  v1::JobEvent event;
  event.mutable_log()->set_message(text);
  return event;
}

class SharedStore : public ::testing::Test {
 protected:
  SharedStore() {
    for (TestServer* server : {&a_, &b_}) {
      server->config().set_job_store(uri_);
      server->config().set_blob_dir(a_.root() + "/shared/blobs");
      server->config().set_artifact_root("file://" + a_.root() + "/shared/artifacts");
      server->config().set_sweep_interval_s(1);
      server->Start();
    }
  }

  const std::string uri_ = PostgresServer::Shared().NewUri();
  TestServer a_{"shared-a"};
  TestServer b_{"shared-b"};
};

TEST_F(SharedStore, AWatchOnOneServerSeesWhatAWorkerTellsTheOther) {
  a_.Create("job-a");
  Stream stream(&a_, "job-a", 0);
  std::int64_t sequence = stream.Next().snapshot().last_sequence();
  FakeWorker worker(&b_, "w1");
  const v1::Lease lease = worker.Acquire();
  ASSERT_EQ(lease.job(), NameOf("job-a"));
  std::vector<v1::JobEvent> events;
  for (int i = 0; i < 20; ++i) {
    events.push_back(LogEvent(absl::StrCat(i)));
    worker.Beat(lease, i, events);
  }
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
  std::string logs;
  Message message = stream.Next();
  for (; message.has_event(); message = stream.Next()) {
    EXPECT_EQ(message.event().sequence(), ++sequence);
    logs += message.event().log().message();
  }
  EXPECT_EQ(logs, "012345678910111213141516171819");
  ASSERT_TRUE(message.has_end());
  EXPECT_EQ(message.end().job().state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(message.end().job().last_sequence(), sequence);
}

TEST_F(SharedStore, AWatchGoesOnAtTheOtherServerWithoutAGap) {
  a_.Create("job-a");
  Stream before(&a_, "job-a", 0);
  std::int64_t sequence = before.Next().snapshot().last_sequence();
  FakeWorker worker(&b_, "w1");
  const v1::Lease lease = worker.Acquire();
  worker.Beat(lease, 1, {LogEvent("one"), LogEvent("two")});
  while (sequence < 3) EXPECT_EQ(before.Next().event().sequence(), ++sequence);
  a_.Stop();
  worker.Beat(lease, 2, {LogEvent("three")}, 2);
  Stream after(&b_, "job-a", sequence);
  EXPECT_TRUE(after.Next().has_snapshot());
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
  Message message = after.Next();
  for (; message.has_event(); message = after.Next()) {
    EXPECT_EQ(message.event().sequence(), ++sequence);
  }
  ASSERT_TRUE(message.has_end());
  EXPECT_EQ(message.end().job().last_sequence(), sequence);
  EXPECT_EQ(sequence, 6);  // queued, running, one, two, three, succeeded
}

TEST_F(SharedStore, ASubmitWakesAWorkerThatWaitsElsewhere) {
  FakeWorker worker(&b_, "w1");
  std::jthread submit([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    a_.Create("job-a");
  });
  EXPECT_EQ(worker.Acquire(10).job(), NameOf("job-a"));
}

TEST_F(SharedStore, APageTokenOfOneServerWorksAtTheOther) {
  for (const char* id : {"job-a", "job-b", "job-c"}) a_.Create(id);
  v1::ListQuantizationJobsRequest request;
  request.set_parent("tenants/acme");
  request.set_page_size(2);
  v1::ListQuantizationJobsResponse page;
  grpc::ClientContext first;
  ASSERT_TRUE(a_.jobs->ListQuantizationJobs(&first, request, &page).ok());
  request.set_page_token(page.next_page_token());
  grpc::ClientContext second;
  const grpc::Status status = b_.jobs->ListQuantizationJobs(&second, request, &page);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(page.quantization_jobs_size(), 1);
}

TEST_F(SharedStore, ADataFolderStaysOneServers) {
  TestServer third("shared-third");
  third.config().set_job_store(uri_);
  third.config().set_data_dir(a_.config().data_dir());
  auto started = ServerApp::Start(third.config());
  EXPECT_TRUE(HasReason(started.status(), Reason::kDataDirLocked)) << started.status();
}

// Many watches of one job at a server whose store can be taken away.
class StoreOutage : public ::testing::Test {
 protected:
  static constexpr size_t kWatches = 40;

  StoreOutage() {
    server_.config().set_job_store(PostgresServer::Shared().UriOf("outage"));
    server_.Start();
    worker_ = std::make_unique<FakeWorker>(&server_, "w1");
    server_.Create("job-a");
    for (size_t i = 0; i < kWatches; ++i) {
      watches_.push_back(std::make_unique<Stream>(&server_, "job-a", 0));
      EXPECT_TRUE(watches_.back()->Next().has_snapshot());
    }
  }
  ~StoreOutage() override {
    watches_.clear();
    server_.Stop();
    PostgresServer::Shared().Execute("DROP SCHEMA outage CASCADE");
  }

  void TakeJobsAway() {
    PostgresServer::Shared().Execute("ALTER TABLE outage.jobs RENAME TO away");
  }
  void BringJobsBack() {
    PostgresServer::Shared().Execute("ALTER TABLE outage.away RENAME TO jobs");
  }
  // Reads of a job that failed, each of which asked the store.
  double FailedReads() const {
    return server_.Metric("quantry_store_errors_total{code=\"UNAVAILABLE\",op=\"get\"}");
  }

  TestServer server_{"outage"};
  std::unique_ptr<FakeWorker> worker_;
  std::vector<std::unique_ptr<Stream>> watches_;
};

TEST_F(StoreOutage, WatchesAskOnceMoreAndGoOn) {
  TakeJobsAway();
  while (FailedReads() < 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  BringJobsBack();
  EXPECT_EQ(worker_->Acquire(20).job(), NameOf("job-a"));
  for (const auto& watch : watches_) {
    EXPECT_EQ(watch->Next().event().state_changed().to(), v1::JOB_STATE_RUNNING);
  }
  EXPECT_LE(FailedReads(), 5) << "one for all watches, not one for each";
}

TEST_F(StoreOutage, WatchesAreToldAfterASecondFailure) {
  TakeJobsAway();
  watches_.push_back(std::make_unique<Stream>(&server_, "job-a", 0));  // in the outage
  for (const auto& watch : watches_) {
    EXPECT_EQ(watch->Next().kind_case(), Message::KIND_NOT_SET);
    const absl::Status status = FromGrpc(watch->reader->Finish());
    EXPECT_TRUE(HasReason(status, Reason::kStoreUnavailable)) << status;
  }
  EXPECT_LE(FailedReads(), 10) << "two for all watches, not two for each";
  BringJobsBack();
}

}  // namespace
}  // namespace quantry::server::testing
