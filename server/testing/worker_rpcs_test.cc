// The worker's and the operator's calls over real gRPC, and what holds for all.
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "server/rpc/service_context.h"
#include "server/server_config.h"
#include "server/testing/test_server.h"

namespace quantry::server::testing {
namespace {

class WorkerRpcs : public ::testing::Test {
 protected:
  WorkerRpcs() : server_("worker-rpcs") { server_.Start(); }
  TestServer server_;
};

TEST_F(WorkerRpcs, ALeaseSaysAllThatIsNeeded) {
  const v1::QuantizationJob job = server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  const std::string root = absl::StrCat("file://", server_.root(), "/data");
  EXPECT_EQ(lease.job(), job.name());
  EXPECT_EQ(lease.epoch(), 1);
  EXPECT_EQ(lease.output_uri(), absl::StrCat(root, "/artifacts/acme/", job.uid(), "/1"));
  EXPECT_EQ(lease.checkpoint_uri(),
            absl::StrCat(root, "/artifacts/acme/", job.uid(), "/checkpoints/1"));
  EXPECT_EQ(lease.blob_uri(), root + "/blobs/acme");
  EXPECT_EQ(lease.spec().SerializeAsString(), job.spec().SerializeAsString());
  EXPECT_GT(lease.ttl().seconds(), 0);
  EXPECT_FALSE(lease.has_resume());
  EXPECT_TRUE(worker.Acquire().job().empty());
}

TEST_F(WorkerRpcs, ResumeWakesThePolls) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  grpc::ClientContext pause_context;
  v1::PauseQueueRequest pause;
  pause.set_reason("tea");
  v1::PauseQueueResponse paused;
  ASSERT_TRUE(server_.admin->PauseQueue(&pause_context, pause, &paused).ok());
  EXPECT_TRUE(worker.Acquire().job().empty());
  grpc::ClientContext stats_context;
  v1::QueueStats stats;
  ASSERT_TRUE(server_.admin->GetQueueStats(&stats_context, {}, &stats).ok());
  EXPECT_EQ(stats.pause().reason(), "tea");
  auto waiting = std::async(std::launch::async, [&] { return worker.Acquire(20); });
  grpc::ClientContext resume_context;
  v1::ResumeQueueResponse resumed;
  ASSERT_TRUE(server_.admin->ResumeQueue(&resume_context, {}, &resumed).ok());
  EXPECT_EQ(waiting.get().job(), NameOf("job-a"));
}

TEST_F(WorkerRpcs, AcquireWaitsForWork) {
  FakeWorker worker(&server_, "w1");
  auto waiting = std::async(std::launch::async, [&] { return worker.Acquire(20); });
  // Submitted while the poll is open (or just before): found either way.
  server_.Create("job-a");
  EXPECT_EQ(waiting.get().job(), NameOf("job-a"));
}

TEST_F(WorkerRpcs, AnAcquireIdIsAnsweredTheSameTwice) {
  server_.Create("job-a");
  server_.Create("job-b");
  FakeWorker worker(&server_, "w1");
  v1::AcquireJobRequest request;
  request.set_session(worker.session());
  request.set_acquire_id(NewUuid4());
  std::set<std::string> jobs;
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    v1::AcquireJobResponse response;
    ASSERT_TRUE(FromGrpc(server_.workers->AcquireJob(&context, request, &response)).ok());
    jobs.insert(response.lease().job());
  }
  EXPECT_EQ(jobs.size(), 1u);
}

TEST_F(WorkerRpcs, UnknownSessionsMustRegister) {
  v1::AcquireJobRequest request;
  request.set_session("nobody");
  request.set_acquire_id(NewUuid4());
  grpc::ClientContext context;
  v1::AcquireJobResponse response;
  EXPECT_TRUE(HasReason(FromGrpc(server_.workers->AcquireJob(&context, request, &response)),
                        Reason::kUnknownWorker));
  request.set_acquire_id("once");
  grpc::ClientContext second;
  EXPECT_TRUE(HasReason(FromGrpc(server_.workers->AcquireJob(&second, request, &response)),
                        Reason::kInvalidArgument));
}

// What a worker of another version may send for one of its jobs.
v1::JobBeat BeatWithBadParts(const v1::Lease& lease) {
  v1::JobBeat beat;
  beat.set_job(lease.job());
  beat.set_epoch(lease.epoch());
  beat.mutable_progress()->set_steps_done(7);
  auto& metrics = *beat.mutable_progress()->mutable_metrics();
  metrics["loss"] = 0.5;
  metrics["bad"] = std::numeric_limits<double>::infinity();
  metrics[std::string(300, 'x')] = 1;
  beat.add_events()->mutable_log()->set_message("first");
  beat.add_events();  // of a kind this server does not know
  beat.add_events()->mutable_log()->set_message("third");
  return beat;
}

TEST_F(WorkerRpcs, OneBadJobCostsNoLease) {
  server_.Create("job-a");
  server_.Create("job-b");
  FakeWorker worker(&server_, "w1");
  const v1::Lease good = worker.Acquire();
  const v1::Lease bad = worker.Acquire();
  v1::HeartbeatRequest request;
  request.set_session(worker.session());
  *request.add_jobs() = BeatWithBadParts(bad);
  request.add_jobs()->set_job("no job");
  request.add_jobs()->set_job(good.job());
  request.mutable_jobs(2)->set_epoch(good.epoch());
  std::map<std::string, v1::JobDirective> answers;
  for (int i = 0; i < 2; ++i) {  // the worker says the same again
    grpc::ClientContext context;
    v1::HeartbeatResponse response;
    const absl::Status status = FromGrpc(server_.workers->Heartbeat(&context, request, &response));
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(response.jobs_size(), 3);
    for (const v1::JobDirective& job : response.jobs()) answers[job.job()] = job;
  }
  EXPECT_EQ(answers["no job"].directive(), v1::DIRECTIVE_LOST);
  for (const v1::Lease& lease : {good, bad}) {
    EXPECT_EQ(answers[lease.job()].directive(), v1::DIRECTIVE_CONTINUE);
    EXPECT_GT(answers[lease.job()].ttl().seconds(), 0);
  }
  EXPECT_EQ(answers[bad.job()].next_event_offset(), 3) << "no event is sent again for ever";

  const v1::JobProgress progress = server_.Get(bad.job().substr(NameOf("").size())).progress();
  EXPECT_EQ(progress.steps_done(), 7);
  EXPECT_EQ(progress.metrics_size(), 1);
  EXPECT_EQ(progress.metrics().at("loss"), 0.5);
  grpc::ClientContext context;
  v1::ListJobEventsRequest list;
  list.set_parent(bad.job());
  v1::ListJobEventsResponse events;
  ASSERT_TRUE(server_.jobs->ListJobEvents(&context, list, &events).ok());
  std::vector<std::string> logs;
  for (const v1::JobEvent& event : events.events()) {
    if (event.has_log()) logs.push_back(event.log().message());
  }
  EXPECT_EQ(logs, (std::vector<std::string>{"first", "third"}));
}

TEST_F(WorkerRpcs, AHeartbeatOfTooMuchIsRefused) {
  FakeWorker worker(&server_, "w1");
  v1::HeartbeatRequest request;
  request.set_session(worker.session());
  for (int i = 0; i < 1025; ++i) request.add_jobs()->set_job(NameOf("job-a"));
  grpc::ClientContext context;
  v1::HeartbeatResponse response;
  EXPECT_TRUE(HasReason(FromGrpc(server_.workers->Heartbeat(&context, request, &response)),
                        Reason::kInvalidArgument));
}

TEST_F(WorkerRpcs, CancelReachesTheWorker) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  EXPECT_EQ(worker.Beat(lease, 1).jobs(0).directive(), v1::DIRECTIVE_CONTINUE);
  grpc::ClientContext context;
  v1::CancelQuantizationJobRequest cancel;
  cancel.set_name(NameOf("job-a"));
  v1::QuantizationJob job;
  ASSERT_TRUE(server_.jobs->CancelQuantizationJob(&context, cancel, &job).ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLING);
  EXPECT_EQ(worker.Beat(lease, 2).jobs(0).directive(), v1::DIRECTIVE_CANCEL);
  v1::FailJobResponse failed;
  ASSERT_TRUE(worker.Fail(lease, /*cancelled=*/true, &failed).ok());
  EXPECT_EQ(failed.state(), v1::JOB_STATE_CANCELLED);
}

// Cancelled while its worker was done: the attempt counts as the job does.
TEST_F(WorkerRpcs, AnArtifactThatCameTooLateIsACancelledAttempt) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  grpc::ClientContext context;
  v1::CancelQuantizationJobRequest cancel;
  cancel.set_name(NameOf("job-a"));
  v1::QuantizationJob job;
  ASSERT_TRUE(server_.jobs->CancelQuantizationJob(&context, cancel, &job).ok());
  EXPECT_FALSE(worker.Complete(worker.WriteArtifact(lease)).ok());
  EXPECT_EQ(server_.Get("job-a").state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(server_.Metric("quantry_job_attempts_total{outcome=\"cancelled\"}"), 1);
  EXPECT_EQ(server_.Metric("quantry_job_attempts_total{outcome=\"succeeded\"}"), 0);
}

TEST_F(WorkerRpcs, FailuresOfTheUserEndTheJob) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  v1::FailJobResponse failed;
  ASSERT_TRUE(worker.Fail(worker.Acquire(), /*cancelled=*/false, &failed).ok());
  EXPECT_EQ(failed.state(), v1::JOB_STATE_FAILED);
  const v1::QuantizationJob job = server_.Get("job-a");
  EXPECT_EQ(job.error().message(), "wanted a model, got nothing");
  EXPECT_EQ(server_.Metric("quantry_jobs_finished_total{method=\"rtn\",outcome=\"failed\"}"), 1);
}

TEST_F(WorkerRpcs, AStaleWorkerChangesNothing) {
  server_.Create("job-a");
  FakeWorker first(&server_, "w1");
  const v1::Lease old = first.Acquire();
  v1::CompleteJobRequest late = first.WriteArtifact(old);
  first.Register();  // a new incarnation: its leases lapse
  FakeWorker second(&server_, "w2");
  const v1::Lease lease = second.Acquire(20);
  ASSERT_EQ(lease.epoch(), 2);
  late.set_session(first.session());
  EXPECT_TRUE(HasReason(FromGrpc(first.Complete(late)), Reason::kLeaseLost));
  EXPECT_EQ(first.Beat(old, 5).jobs(0).directive(), v1::DIRECTIVE_LOST);
  EXPECT_EQ(server_.Get("job-a").state(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(server_.Metric("quantry_stale_writes_rejected_total{op=\"complete\"}"), 1);
}

// Epochs of a name that is used again begin at 1 again, and the worker may be the same one.
TEST_F(WorkerRpcs, AnAttemptOfADeletedJobChangesNothingOfTheNextOfItsName) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease old = worker.Acquire();
  const v1::CompleteJobRequest late = worker.WriteArtifact(old);
  v1::FailJobResponse failed;
  ASSERT_TRUE(worker.Fail(old, /*cancelled=*/false, &failed).ok());
  grpc::ClientContext context;
  v1::DeleteQuantizationJobRequest remove;
  remove.set_name(old.job());
  google::protobuf::Empty nothing;
  ASSERT_TRUE(server_.jobs->DeleteQuantizationJob(&context, remove, &nothing).ok());
  server_.Create("job-a");
  const v1::Lease lease = worker.Acquire();
  ASSERT_EQ(lease.epoch(), old.epoch());
  ASSERT_NE(lease.job_uid(), old.job_uid());
  EXPECT_TRUE(HasReason(FromGrpc(worker.Complete(late)), Reason::kLeaseLost));
  EXPECT_TRUE(HasReason(FromGrpc(worker.Fail(old, false, &failed)), Reason::kLeaseLost));
  const v1::JobDirective lost = worker.Beat(old, 5).jobs(0);
  EXPECT_EQ(lost.directive(), v1::DIRECTIVE_LOST);
  EXPECT_EQ(lost.job_uid(), old.job_uid()) << "whose it is, as the name and epoch do not tell";
  EXPECT_EQ(worker.Beat(lease, 1).jobs(0).directive(), v1::DIRECTIVE_CONTINUE);
  EXPECT_EQ(server_.Get("job-a").state(), v1::JOB_STATE_RUNNING);
}

TEST_F(WorkerRpcs, CompleteTakesOnlyWholeArtifacts) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  const std::string folder = lease.output_uri().substr(7);
  const v1::CompleteJobRequest good = worker.WriteArtifact(lease);
  v1::CompleteJobRequest bad = good;
  bad.set_manifest_sha256(std::string(64, '0'));
  EXPECT_TRUE(HasReason(FromGrpc(worker.Complete(bad)), Reason::kArtifactCorrupt));
  bad.set_manifest_sha256("x");
  EXPECT_TRUE(HasReason(FromGrpc(worker.Complete(bad)), Reason::kInvalidArgument));
  std::filesystem::rename(folder + "/config.json", folder + "/hidden");
  EXPECT_TRUE(HasReason(FromGrpc(worker.Complete(good)), Reason::kArtifactCorrupt));
  std::filesystem::rename(folder + "/hidden", folder + "/config.json");
  EXPECT_TRUE(FromGrpc(worker.Complete(good)).ok());
  EXPECT_TRUE(FromGrpc(worker.Complete(good)).ok());  // again: the reply was lost
  const v1::QuantizationJob job = server_.Get("job-a");
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.result().artifact_uri(), lease.output_uri());
  EXPECT_DOUBLE_EQ(job.result().bits().linears(), 4.5);
  EXPECT_EQ(server_.Metric("quantry_jobs_finished_total{method=\"rtn\",outcome=\"succeeded\"}"), 1);
  EXPECT_EQ(server_.Metric("quantry_job_attempts_total{outcome=\"succeeded\"}"), 1);
  EXPECT_EQ(server_.Metric("quantry_job_queue_seconds_count"), 1);
}

TEST_F(WorkerRpcs, ArtifactsAreCountedByTheServer) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  v1::CompleteJobRequest request = worker.WriteArtifact(worker.Acquire());
  const std::int64_t total_bytes = request.total_bytes();
  request.set_total_bytes(-(std::int64_t{1} << 62));  // would make room for ever
  request.set_file_count(-5);
  ASSERT_TRUE(FromGrpc(worker.Complete(request)).ok());
  grpc::ClientContext context;
  v1::GetArtifactRequest get;
  get.set_name(server_.Get("job-a").artifact());
  v1::Artifact artifact;
  ASSERT_TRUE(server_.artifacts->GetArtifact(&context, get, &artifact).ok());
  EXPECT_EQ(artifact.total_bytes(), total_bytes);
  EXPECT_EQ(artifact.file_count(), 3);
  grpc::ClientContext quota_context;
  v1::GetQuotaRequest quota;
  quota.set_parent("tenants/acme");
  v1::GetQuotaResponse usage;
  ASSERT_TRUE(server_.admin->GetQuota(&quota_context, quota, &usage).ok());
  EXPECT_GE(usage.stored_bytes(), total_bytes);
}

TEST_F(WorkerRpcs, AManifestThatCountsWrongIsRefused) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  const std::string folder = lease.output_uri().substr(7);
  v1::CompleteJobRequest request = worker.WriteArtifact(lease);
  for (
      const char* files :
      {R"({"path": "no-such-file", "size_bytes": "-1"})",
       R"({"path": "config.json", "size_bytes": "8"}, {"path": "config.json", "size_bytes": "8"})"}) {
    const std::string json = absl::StrCat(R"({"files": [)", files, "]}");
    std::ofstream(folder + "/manifest.json") << json;
    request.set_manifest_sha256(Sha256Hex(json));
    EXPECT_TRUE(HasReason(FromGrpc(worker.Complete(request)), Reason::kArtifactCorrupt)) << files;
  }
}

TEST_F(WorkerRpcs, CheckpointsComeBackInTheNextLease) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  v1::CommitCheckpointRequest commit;
  commit.set_session(worker.session());
  commit.set_job(lease.job());
  commit.set_epoch(lease.epoch());
  commit.mutable_checkpoint()->set_uri(lease.checkpoint_uri() + "/block-1");
  commit.mutable_checkpoint()->set_blocks_done(1);
  grpc::ClientContext commit_context;
  v1::CommitCheckpointResponse committed;
  ASSERT_TRUE(
      FromGrpc(server_.workers->CommitCheckpoint(&commit_context, commit, &committed)).ok());
  v1::ReleaseJobRequest release;
  release.set_session(worker.session());
  release.set_job(lease.job());
  release.set_epoch(lease.epoch());
  release.set_reason("drain");
  grpc::ClientContext release_context;
  v1::ReleaseJobResponse released;
  ASSERT_TRUE(FromGrpc(server_.workers->ReleaseJob(&release_context, release, &released)).ok());
  const v1::Lease next = worker.Acquire(20);
  EXPECT_EQ(next.epoch(), 2);
  EXPECT_EQ(next.resume().blocks_done(), 1);
  EXPECT_EQ(next.resume().uri(), commit.checkpoint().uri());
}

TEST_F(WorkerRpcs, CheckpointsLieWhereTheirLeaseSays) {
  server_.Create("job-a");
  server_.Create("job-b");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  const v1::Lease other = worker.Acquire();
  const auto commit = [&](const std::string& uri, std::int64_t epoch) {
    v1::CommitCheckpointRequest request;
    request.set_session(worker.session());
    request.set_job(lease.job());
    request.set_epoch(epoch);
    request.mutable_checkpoint()->set_uri(uri);
    grpc::ClientContext context;
    v1::CommitCheckpointResponse response;
    return FromGrpc(server_.workers->CommitCheckpoint(&context, request, &response));
  };
  for (const std::string& uri :
       {other.checkpoint_uri(), lease.output_uri(), lease.checkpoint_uri() + "0",
        lease.checkpoint_uri() + "/../../../../../secrets", std::string("file:///etc"),
        std::string("s3://elsewhere/x?endpoint_override=evil")}) {
    EXPECT_TRUE(HasReason(commit(uri, lease.epoch()), Reason::kInvalidArgument)) << uri;
  }
  EXPECT_TRUE(HasReason(commit("file:///etc", lease.epoch() + 1), Reason::kLeaseLost));
  EXPECT_TRUE(commit(lease.checkpoint_uri(), lease.epoch()).ok());
}

TEST_F(WorkerRpcs, AFailureIsKeptWithinBounds) {
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  v1::FailJobRequest request;
  request.set_session(worker.session());
  request.set_job(lease.job());
  request.set_epoch(lease.epoch());
  request.mutable_error()->set_failure_class(v1::FAILURE_CLASS_USER);
  request.mutable_error()->set_reason(std::string(64 << 10, 'R'));
  for (int i = 0; i < 1000; ++i) {
    (*request.mutable_error()->mutable_metadata())[absl::StrCat("key-", i)] =
        std::string(3900, 'v');
  }
  grpc::ClientContext context;
  v1::FailJobResponse response;
  ASSERT_TRUE(FromGrpc(server_.workers->FailJob(&context, request, &response)).ok());
  const v1::QuantizationJob job = server_.Get("job-a");
  EXPECT_LT(job.error().ByteSizeLong(), std::size_t{20} << 10);
}

TEST_F(WorkerRpcs, WorkersAreListedInPages) {
  std::vector<std::unique_ptr<FakeWorker>> workers;
  for (const char* id : {"w2", "w3", "w1"}) {
    workers.push_back(std::make_unique<FakeWorker>(&server_, id));
  }
  v1::ListWorkersRequest request;
  const auto page = [&](int size, const std::string& token, v1::ListWorkersResponse* response) {
    grpc::ClientContext context;
    request.set_page_size(size);
    request.set_page_token(token);
    response->Clear();
    return FromGrpc(server_.admin->ListWorkers(&context, request, response));
  };
  v1::ListWorkersResponse response;
  ASSERT_TRUE(page(2, "", &response).ok());
  ASSERT_EQ(response.workers_size(), 2);
  EXPECT_EQ(response.workers(0).worker().worker_id(), "w1");
  const std::string token = response.next_page_token();
  ASSERT_TRUE(page(1, token, &response).ok());
  ASSERT_EQ(response.workers_size(), 1);
  EXPECT_EQ(response.workers(0).worker().worker_id(), "w3");
  EXPECT_EQ(response.next_page_token(), "") << "the last page is full, and the last";
  ASSERT_TRUE(page(0, "", &response).ok());
  EXPECT_EQ(response.workers_size(), 3);
  EXPECT_TRUE(HasReason(page(1, token + "x", &response), Reason::kInvalidPageToken));
  EXPECT_EQ(page(-1, "", &response).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WorkerRpcs, OperatorsSeeAndDrainWorkers) {
  FakeWorker worker(&server_, "w1");
  server_.Create("job-a");
  const v1::Lease lease = worker.Acquire();
  grpc::ClientContext list_context;
  v1::ListWorkersResponse workers;
  ASSERT_TRUE(server_.admin->ListWorkers(&list_context, {}, &workers).ok());
  ASSERT_EQ(workers.workers_size(), 1);
  EXPECT_EQ(workers.workers(0).jobs(0), lease.job());
  EXPECT_TRUE(workers.workers(0).live());
  grpc::ClientContext drain_context;
  v1::DrainWorkerRequest drain;
  drain.set_worker_id("w1");
  drain.set_terminate(true);
  v1::WorkerStatus status;
  ASSERT_TRUE(server_.admin->DrainWorker(&drain_context, drain, &status).ok());
  EXPECT_TRUE(status.draining());
  EXPECT_EQ(worker.Beat(lease, 1).worker(), v1::WORKER_DIRECTIVE_TERMINATE);
  drain.set_worker_id("w9");
  grpc::ClientContext unknown;
  EXPECT_TRUE(HasReason(FromGrpc(server_.admin->DrainWorker(&unknown, drain, &status)),
                        Reason::kWorkerNotFound));
  grpc::ClientContext stats_context;
  v1::QueueStats stats;
  ASSERT_TRUE(server_.admin->GetQueueStats(&stats_context, {}, &stats).ok());
  EXPECT_EQ(stats.jobs().at("RUNNING"), 1);
}

// Every method of every service goes through the wrapper that counts it: call
// each one with an empty request and look at its counter.
TEST_F(WorkerRpcs, NoMethodIsWithoutTheWrapper) {
  for (const std::string& name : AllMethodNames()) {
    const bool worker = name.find("WorkerService") != std::string::npos;
    const auto& channel = worker ? server_.worker_channel : server_.tenant_channel;
    const auto kind =
        name.find("Watch") != std::string::npos || name.find("Read") != std::string::npos
            ? grpc::internal::RpcMethod::SERVER_STREAMING
        : name.find("Upload") != std::string::npos ? grpc::internal::RpcMethod::CLIENT_STREAMING
                                                   : grpc::internal::RpcMethod::NORMAL_RPC;
    grpc::ClientContext context;
    google::protobuf::Empty request;
    google::protobuf::Empty response;
    const grpc::internal::RpcMethod method(name.c_str(), kind, channel);
    grpc::internal::BlockingUnaryCall<google::protobuf::Empty, google::protobuf::Empty>(
        channel.get(), method, &context, request, &response);
    EXPECT_EQ(
        server_.Metric(absl::StrCat("grpc_server_call_started_total{grpc_method=\"", name, "\"}")),
        1)
        << name;
  }
  EXPECT_EQ(AllMethodNames().size(), 31u);
}

TEST_F(WorkerRpcs, PortsServeOnlyTheirServices) {
  const auto wrong = v1::WorkerService::NewStub(server_.tenant_channel);
  grpc::ClientContext context;
  v1::RegisterWorkerResponse response;
  EXPECT_EQ(wrong->RegisterWorker(&context, {}, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(WorkerRpcs, LargeRequestsAreRefused) {
  v1::GetQuantizationJobRequest request;
  request.set_name(std::string(2 << 20, 'x'));
  grpc::ClientContext context;
  v1::QuantizationJob job;
  EXPECT_EQ(server_.jobs->GetQuantizationJob(&context, request, &job).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(WorkerRpcs, ReadinessAndAddressFiles) {
  EXPECT_NE(server_.HttpGet("/readyz").find("200 OK"), std::string::npos);
  std::string address;
  std::ifstream(server_.root() + "/data/run/tenant") >> address;
  EXPECT_EQ(address, server_.app().addresses().tenant);
  server_.app().Drain();
  EXPECT_NE(server_.HttpGet("/readyz").find("503"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(server_.root() + "/data/run/tenant"));
}

TEST_F(WorkerRpcs, OneDataFolderHasOneServer) {
  const auto second = ServerApp::Start(server_.config());
  ASSERT_FALSE(second.ok());
  EXPECT_TRUE(HasReason(second.status(), Reason::kDataDirLocked));
  EXPECT_NE(second.status().message().find(std::to_string(getpid())), std::string::npos);
}

TEST_F(WorkerRpcs, OnePortHasOneServer) {
  TestServer other("worker-rpcs-other");
  other.config().set_listen(server_.app().addresses().tenant);
  ASSERT_TRUE(FinishServerConfig(&other.config()).ok());
  const auto second = ServerApp::Start(other.config());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("the port is taken"), std::string::npos);
}

}  // namespace
}  // namespace quantry::server::testing
