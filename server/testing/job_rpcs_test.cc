// The tenant's calls on jobs over real gRPC.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "google/rpc/status.pb.h"
#include "server/testing/test_server.h"

namespace quantry::server::testing {
namespace {

class JobRpcs : public ::testing::Test {
 protected:
  JobRpcs() : server_("job-rpcs") { server_.Start(); }

  absl::Status Create(const v1::CreateQuantizationJobRequest& request,
                      v1::QuantizationJob* job = nullptr) {
    grpc::ClientContext context;
    v1::CreateQuantizationJobResponse response;
    const grpc::Status status = server_.jobs->CreateQuantizationJob(&context, request, &response);
    if (job != nullptr) *job = response.quantization_job();
    return FromGrpc(status);
  }

  absl::Status List(const v1::ListQuantizationJobsRequest& request,
                    v1::ListQuantizationJobsResponse* response) {
    grpc::ClientContext context;
    return FromGrpc(server_.jobs->ListQuantizationJobs(&context, request, response));
  }

  absl::Status Cancel(const std::string& id, v1::QuantizationJob* job) {
    grpc::ClientContext context;
    v1::CancelQuantizationJobRequest request;
    request.set_name(NameOf(id));
    return FromGrpc(server_.jobs->CancelQuantizationJob(&context, request, job));
  }

  absl::Status Delete(const std::string& id, bool allow_missing = false) {
    grpc::ClientContext context;
    v1::DeleteQuantizationJobRequest request;
    request.set_name(NameOf(id));
    request.set_allow_missing(allow_missing);
    google::protobuf::Empty response;
    return FromGrpc(server_.jobs->DeleteQuantizationJob(&context, request, &response));
  }

  // From now on the server's engine answers `methods` with this.
  void UseEngine(const std::string& methods) { UseScript("echo '" + methods + "'"); }

  // From now on it is this shell script.
  void UseScript(const std::string& script) {
    server_.Stop();
    const std::string engine = server_.root() + "/engine";
    server_.config().set_engine_binary(engine);
    server_.config().set_engine_confinement(false);  // it is a script
    std::ofstream(engine) << "#!/bin/sh\n" << script << "\n";
    chmod(engine.c_str(), 0700);
    server_.Start();
  }

  v1::CreateQuantizationJobRequest Reusing(const std::string& id) {
    v1::CreateQuantizationJobRequest request = server_.JobRequest(id);
    request.set_reuse_result(true);
    return request;
  }

  TestServer server_;
};

TEST_F(JobRpcs, CreateIsDurableAndReadable) {
  const v1::QuantizationJob created = server_.Create("first");
  EXPECT_EQ(created.name(), NameOf("first"));
  EXPECT_EQ(created.state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(created.spec().method().rtn().grid().group_size(), 128);
  server_.Stop();
  server_.Start();
  EXPECT_EQ(server_.Get("first").SerializeAsString(), created.SerializeAsString());
}

TEST_F(JobRpcs, RequestIdMakesCreateIdempotent) {
  v1::CreateQuantizationJobRequest request = server_.JobRequest("");
  request.set_request_id(NewUuid4());
  v1::QuantizationJob first;
  v1::QuantizationJob second;
  ASSERT_TRUE(Create(request, &first).ok());
  ASSERT_TRUE(Create(request, &second).ok());
  EXPECT_EQ(first.uid(), second.uid());
  request.mutable_quantization_job()->set_display_name("other");
  EXPECT_TRUE(HasReason(Create(request), Reason::kRequestIdReused));
  EXPECT_EQ(server_.Metric("quantry_jobs_submitted_total"), 1);
}

TEST_F(JobRpcs, IdsAreTakenOnce) {
  server_.Create("first");
  EXPECT_TRUE(HasReason(Create(server_.JobRequest("first")), Reason::kJobIdTaken));
}

TEST_F(JobRpcs, ManyParallelCreatesWithOneRequestIdMakeOneJob) {
  v1::CreateQuantizationJobRequest request = server_.JobRequest("");
  request.set_request_id(NewUuid4());
  std::vector<std::thread> threads;
  std::vector<v1::QuantizationJob> jobs(32);
  for (v1::QuantizationJob& job : jobs) {
    threads.emplace_back([&] { EXPECT_TRUE(Create(request, &job).ok()); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const v1::QuantizationJob& job : jobs) EXPECT_EQ(job.uid(), jobs[0].uid());
}

TEST_F(JobRpcs, InvalidSpecsNameTheirFields) {
  v1::CreateQuantizationJobRequest request = server_.JobRequest("bad-job");
  request.mutable_quantization_job()
      ->mutable_spec()
      ->mutable_method()
      ->mutable_rtn()
      ->mutable_grid()
      ->set_bits(5);
  const absl::Status status = Create(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(HasReason(status, Reason::kInvalidSpec));
  EXPECT_NE(status.message().find("grid.bits: wanted 2, 3, 4, 6 or 8, got 5"), std::string::npos);
}

// The engine's own table of recipes decides, before anything is queued.
TEST_F(JobRpcs, ARecipeContradictedIsRefusedAtSubmit) {
  UseEngine(R"({"methods": [{"name": "tesseraq", "recipes": [{"name": "two", "bits": 2}]}]})");
  v1::CreateQuantizationJobRequest request = server_.JobRequest("bad-job");
  v1::JobSpec* spec = request.mutable_quantization_job()->mutable_spec();
  *spec->mutable_calibration()->mutable_source()->mutable_blob() = server_.Upload("text", "words");
  spec->mutable_method()->mutable_tesseraq()->set_recipe("two");
  spec->mutable_method()->mutable_tesseraq()->mutable_grid()->set_bits(3);
  const absl::Status status = Create(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(HasReason(status, Reason::kInvalidSpec)) << status;
  EXPECT_NE(status.message().find(
                "method.tesseraq.grid.bits: wanted 2, which recipe two has, or nothing, got 3"),
            std::string::npos)
      << status;
  spec->mutable_method()->mutable_tesseraq()->mutable_grid()->clear_bits();
  EXPECT_TRUE(Create(request).ok());
  grpc::ClientContext context;
  v1::ListMethodsResponse methods;
  ASSERT_TRUE(server_.jobs->ListMethods(&context, {}, &methods).ok());
  EXPECT_EQ(methods.methods(0).recipes(0).name(), "two");
}

// Right after a start: what the recipe says would be missing, and the job another one.
TEST_F(JobRpcs, ARecipeWaitsForTheEngine) {
  UseScript("exec sleep 60");
  v1::CreateQuantizationJobRequest request = server_.JobRequest("early");
  v1::JobSpec* spec = request.mutable_quantization_job()->mutable_spec();
  *spec->mutable_calibration()->mutable_source()->mutable_blob() = server_.Upload("text", "words");
  spec->mutable_method()->mutable_tesseraq()->set_recipe("two");
  EXPECT_EQ(Create(request).code(), absl::StatusCode::kUnavailable);
  v1::ListQuantizationJobsRequest list;
  list.set_parent("tenants/acme");
  v1::ListQuantizationJobsResponse jobs;
  ASSERT_TRUE(List(list, &jobs).ok());
  EXPECT_EQ(jobs.quantization_jobs_size(), 0);
  spec->mutable_method()->mutable_tesseraq()->clear_recipe();
  spec->mutable_method()->mutable_tesseraq()->mutable_grid()->set_bits(2);
  const absl::Status taken = Create(request);
  EXPECT_TRUE(taken.ok()) << taken;
  EXPECT_TRUE(Create(Reusing("reusing")).ok());
}

TEST_F(JobRpcs, AFormatThatTheMethodDoesNotWriteIsRefusedAtSubmit) {
  v1::CreateQuantizationJobRequest request = server_.JobRequest("bad-job");
  request.mutable_quantization_job()->mutable_spec()->add_outputs()->set_format(
      v1::OUTPUT_FORMAT_GPTQ);
  EXPECT_TRUE(Create(request).ok()) << "without an engine nobody knows";
  UseEngine(R"({"methods": [{"name": "rtn", "output_formats": ["quantry", "dense"]}]})");
  request = server_.JobRequest("bad-job-2");
  v1::OutputSpec* output = request.mutable_quantization_job()->mutable_spec()->add_outputs();
  output->set_format(v1::OUTPUT_FORMAT_GPTQ);
  grpc::ClientContext context;
  v1::ListMethodsResponse methods;  // waits for the engine, which Create does not
  ASSERT_TRUE(server_.jobs->ListMethods(&context, {}, &methods).ok());
  for (const bool validate_only : {false, true}) {
    request.set_validate_only(validate_only);
    const absl::Status status = Create(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(HasReason(status, Reason::kInvalidSpec)) << status;
    EXPECT_NE(status.message().find("outputs[0].format: wanted one that method rtn can write "
                                    "(dense, quantry), got gptq"),
              std::string::npos)
        << status;
  }
  request.set_validate_only(false);
  output->set_format(v1::OUTPUT_FORMAT_DENSE);
  EXPECT_TRUE(Create(request).ok());
}

// The engine's pid, which it writes when it starts; "" when it did not in 20 s.
std::string PidFrom(int fifo) {
  pollfd written{fifo, POLLIN, 0};
  if (poll(&written, 1, 20'000) != 1) return "";
  char text[16];
  const ssize_t got = read(fifo, text, sizeof text);
  return got <= 1 ? "" : std::string(text, static_cast<size_t>(got - 1));
}

// An engine that answers nobody would keep others waiting for a minute.
TEST_F(JobRpcs, TheEngineOfAQuoteEndsWithItsCaller) {
  const std::string path = server_.root() + "/pid";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const int fifo = open(path.c_str(), O_RDWR | O_CLOEXEC);  // both: nobody waits for the other
  ASSERT_GE(fifo, 0);
  UseScript("test \"$1\" = quote || exit 1; echo $$ > " + path + "; exec sleep 1000");
  v1::CreateQuantizationJobRequest request = server_.JobRequest("quoted");
  request.set_validate_only(true);
  for (const bool cancels : {true, false}) {
    grpc::ClientContext context;
    const auto now = std::chrono::system_clock::now();
    if (!cancels) context.set_deadline(now + std::chrono::seconds(3));
    absl::Status status;
    std::thread caller([&] {
      v1::CreateQuantizationJobResponse response;
      status = FromGrpc(server_.jobs->CreateQuantizationJob(&context, request, &response));
    });
    const std::string pid = PidFrom(fifo);
    if (cancels) context.TryCancel();
    caller.join();
    EXPECT_EQ(status.code(),
              cancels ? absl::StatusCode::kCancelled : absl::StatusCode::kDeadlineExceeded);
    ASSERT_NE(pid, "") << cancels << status;
    EXPECT_TRUE(GoneSoon("/proc/" + pid)) << cancels;
  }
  close(fifo);
}

// Tenants learn that it was the server; where its programs and folders lie stays in the log.
TEST_F(JobRpcs, AQuoteThatTheServerCannotMakeNamesNoPlaceOnIt) {
  const std::string tmp = server_.root() + "/data/tmp";
  const auto nothing = [] {};
  struct Case {
    std::string script;
    std::function<void()> break_it;
    Reason reason;
    std::string place;
  };
  const Case cases[] = {
      {"exec /srv/no-such", nothing, Reason::kEngineProtocol, "/srv/no-such"},
      {R"(echo '{"error": {"failure_class": "FAILURE_CLASS_ENVIRONMENT", "reason": "READ_FAILED", )"
       R"("message": "cannot read /srv/blobs/x", "metadata": {"path": "/srv/blobs/x"}}}'; exit 1)",
       nothing, Reason::kReadFailed, "/srv/blobs/x"},
      {"", [&] { std::filesystem::remove(server_.root() + "/engine"); }, Reason::kFileNotFound,
       server_.root() + "/engine"},
      {"",
       [&] {
         std::filesystem::rename(tmp, tmp + "-away");
         std::ofstream(tmp) << "a file";
       },
       Reason::kStorageError, tmp},
  };
  server_.config().set_log_level("warning");
  for (const Case& c : cases) {
    UseScript(c.script);
    v1::CreateQuantizationJobRequest request = server_.JobRequest("quoted");
    request.set_validate_only(true);
    c.break_it();
    ::testing::internal::CaptureStderr();
    const absl::Status status = Create(request);
    const std::string log = ::testing::internal::GetCapturedStderr();
    EXPECT_TRUE(HasReason(status, c.reason)) << status;
    EXPECT_EQ(ToRpcStatus(status).SerializeAsString().find(c.place), std::string::npos) << status;
    EXPECT_NE(log.find(c.place), std::string::npos) << log;
  }
}

TEST_F(JobRpcs, WhatQuotesOfAKilledServerLeftGoesAtTheNextStart) {
  namespace fs = std::filesystem;
  server_.Stop();
  const fs::path tmp = server_.root() + "/data/tmp";
  fs::create_directories(tmp / "quote-1/model");
  std::ofstream(tmp / "quote-1/model/config.json") << "{}";
  std::ofstream(tmp / "quote-2.json") << "{}";
  fs::create_symlink(server_.root(), tmp / "quote-1/link");
  std::ofstream(tmp / "mine") << "text";
  server_.Start();
  EXPECT_FALSE(fs::exists(tmp / "quote-1"));
  EXPECT_FALSE(fs::exists(tmp / "quote-2.json"));
  EXPECT_TRUE(fs::exists(tmp / "mine"));
  EXPECT_TRUE(fs::exists(server_.root() + "/data"));
}

TEST_F(JobRpcs, TheTraceStaysWithTheJobAndABadOneIsIgnored) {
  const std::string good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  const std::pair<std::string, std::string> cases[] = {
      {good, good}, {"00-nonsense", ""}, {std::string(1000, 'x'), ""}, {"", ""}};
  int i = 0;
  for (const auto& [sent, stored] : cases) {
    grpc::ClientContext context;
    if (!sent.empty()) context.AddMetadata("traceparent", sent);
    const std::string id = "traced-" + std::to_string(i++);
    v1::CreateQuantizationJobResponse response;
    const grpc::Status status =
        server_.jobs->CreateQuantizationJob(&context, server_.JobRequest(id), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.quantization_job().traceparent(), stored);
    EXPECT_EQ(server_.Get(id).traceparent(), stored);
  }
  FakeWorker worker(&server_, "worker");
  EXPECT_EQ(worker.Acquire().traceparent(), good);
}

TEST_F(JobRpcs, AResultIsShared) {
  UseEngine(R"({"methods": [{"name": "rtn"}], "engine_version": "1.0"})");
  FakeWorker worker(&server_, "worker");
  v1::QuantizationJob first;
  ASSERT_TRUE(Create(Reusing("first"), &first).ok());
  v1::QuantizationJob second;
  ASSERT_TRUE(Create(Reusing("second"), &second).ok());
  EXPECT_EQ(second.state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(second.spec_digest(), first.spec_digest());
  const v1::Lease lease = worker.Acquire();
  EXPECT_EQ(lease.job(), NameOf("first"));
  EXPECT_EQ(worker.Acquire().job(), "");

  // A watch of the one that waits sees the other's end.
  grpc::ClientContext context;
  v1::WatchQuantizationJobRequest watch;
  watch.set_name(NameOf("second"));
  const auto stream = server_.jobs->WatchQuantizationJob(&context, watch);
  v1::WatchQuantizationJobResponse message;
  ASSERT_TRUE(stream->Read(&message));
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
  while (stream->Read(&message)) {
  }
  ASSERT_TRUE(message.has_end());
  second = message.end().job();
  first = server_.Get("first");
  EXPECT_EQ(second.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(second.artifact(), first.artifact());
  EXPECT_EQ(second.result_of(), NameOf("first"));
  EXPECT_EQ(second.result().artifact_uri(), first.result().artifact_uri());

  v1::QuantizationJob third;
  ASSERT_TRUE(Create(Reusing("third"), &third).ok());
  EXPECT_EQ(third.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(third.artifact(), first.artifact());
  for (const auto& [outcome, count] :
       {std::pair("hit", 1), std::pair("joined", 1), std::pair("miss", 1)}) {
    EXPECT_EQ(
        server_.Metric("quantry_result_cache_total{outcome=\"" + std::string(outcome) + "\"}"),
        count);
  }
  EXPECT_EQ(server_.Metric("quantry_jobs_finished_total{method=\"rtn\",outcome=\"succeeded\"}"), 3);

  // The files stay as long as one of them does.
  const auto manifest = [&] {
    grpc::ClientContext call;
    v1::GetArtifactRequest get;
    get.set_name(first.artifact());
    v1::Artifact artifact;
    return server_.artifacts->GetArtifact(&call, get, &artifact).ok() &&
           !artifact.manifest().files().empty();
  };
  for (const char* id : {"first", "third"}) {
    ASSERT_TRUE(Delete(id).ok());
    EXPECT_TRUE(manifest()) << id;
  }
  const std::string folder = first.result().artifact_uri().substr(std::string("file://").size());
  EXPECT_TRUE(std::filesystem::exists(folder));
  ASSERT_TRUE(Delete("second").ok());
  EXPECT_FALSE(manifest());
  EXPECT_TRUE(GoneSoon(folder));
}

TEST_F(JobRpcs, OnlyUploadsHaveResultsToShare) {
  v1::CreateQuantizationJobRequest request = Reusing("local");
  request.mutable_quantization_job()->mutable_spec()->mutable_model()->set_uri("s3://bucket/model");
  const absl::Status status = Create(request);
  EXPECT_TRUE(HasReason(status, Reason::kInvalidSpec)) << status;
  EXPECT_NE(status.message().find("reuse_result: wanted sources whose content is known"),
            std::string::npos)
      << status;
  // An engine that does not say its version gives none: the job runs as usual.
  v1::QuantizationJob job;
  ASSERT_TRUE(Create(Reusing("alone"), &job).ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(server_.Metric("quantry_result_cache_total{outcome=\"miss\"}"), 1);
}

TEST_F(JobRpcs, MissingBlobsAreNamed) {
  v1::CreateQuantizationJobRequest request = server_.JobRequest("bad-job");
  v1::BlobFile& file = *request.mutable_quantization_job()
                            ->mutable_spec()
                            ->mutable_model()
                            ->mutable_blobs()
                            ->add_files();
  file.set_path("model.safetensors");
  file.set_sha256(std::string(64, 'b'));
  file.set_size_bytes(5);
  const absl::Status status = Create(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(HasReason(status, Reason::kSourceMissing));
  EXPECT_NE(status.message().find(file.sha256()), std::string::npos);
}

TEST_F(JobRpcs, LocalPathsOutsideTheRootsAreForbidden) {
  v1::CreateQuantizationJobRequest request = server_.JobRequest("bad-job");
  v1::JobSpec& spec = *request.mutable_quantization_job()->mutable_spec();
  spec.mutable_model()->set_local_path("/etc");
  EXPECT_TRUE(HasReason(Create(request), Reason::kSourceForbidden));
  spec.mutable_model()->set_uri("file:///etc");
  EXPECT_TRUE(HasReason(Create(request), Reason::kSourceForbidden));
}

TEST_F(JobRpcs, UnknownJobsAreNotFound) {
  grpc::ClientContext context;
  v1::GetQuantizationJobRequest request;
  request.set_name(NameOf("nobody"));
  v1::QuantizationJob job;
  const absl::Status status = FromGrpc(server_.jobs->GetQuantizationJob(&context, request, &job));
  EXPECT_TRUE(HasReason(status, Reason::kJobNotFound));
}

// What is cut in a message is cut between characters: with half of one in it,
// the client could not read the details.
TEST_F(JobRpcs, ErrorsAboutLongTextsKeepTheirDetails) {
  for (int shift = 0; shift < 2; ++shift) {
    std::string text(static_cast<std::size_t>(shift), 'x');
    for (int i = 0; i < 1000; ++i) text += "слово ";
    v1::CreateQuantizationJobRequest request = server_.JobRequest("job-a");
    (*request.mutable_quantization_job()->mutable_labels())[text] = "x";
    EXPECT_NE(ReasonOf(Create(request)), "") << shift;
    request = server_.JobRequest("job-a");
    request.set_parent("tenants/" + text);
    EXPECT_EQ(ReasonOf(Create(request)), "INVALID_NAME") << shift;
    request = server_.JobRequest("job-a");
    request.mutable_quantization_job()->mutable_spec()->mutable_model()->set_uri("s3://" + text);
    EXPECT_NE(ReasonOf(Create(request)), "") << shift;
  }
}

TEST_F(JobRpcs, ListPagesNewestFirst) {
  for (const char* id : {"job-a", "job-b", "job-c", "job-d", "job-e"}) server_.Create(id);
  v1::ListQuantizationJobsRequest request;
  request.set_parent("tenants/acme");
  request.set_page_size(2);
  std::vector<std::string> names;
  int pages = 0;
  do {
    v1::ListQuantizationJobsResponse response;
    ASSERT_TRUE(List(request, &response).ok());
    for (const auto& job : response.quantization_jobs()) names.push_back(job.name());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(pages, 3);
  EXPECT_EQ(names, (std::vector<std::string>{NameOf("job-e"), NameOf("job-d"), NameOf("job-c"),
                                             NameOf("job-b"), NameOf("job-a")}));
}

TEST_F(JobRpcs, APageEndsAtAMebibyte) {
  constexpr int kJobs = 200;
  for (int i = 0; i < kJobs; ++i) {
    v1::CreateQuantizationJobRequest create = server_.JobRequest(absl::StrCat("job-", i));
    auto& labels = *create.mutable_quantization_job()->mutable_labels();
    for (int n = 0; n < 32; ++n) labels[absl::StrCat("label-", n)] = std::string(250, 'x');
    ASSERT_TRUE(Create(create).ok());
  }
  v1::ListQuantizationJobsRequest request;
  request.set_parent("tenants/acme");
  request.set_page_size(1000);
  std::set<std::string> names;
  int pages = 0;
  do {
    v1::ListQuantizationJobsResponse response;
    ASSERT_TRUE(List(request, &response).ok());
    EXPECT_LT(response.ByteSizeLong(), std::size_t{3} << 19);
    for (const auto& job : response.quantization_jobs()) names.insert(job.name());
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_GT(pages, 1);
  EXPECT_EQ(names.size(), std::size_t{kJobs});
}

TEST_F(JobRpcs, ListRefusesForeignTokensAndBadFilters) {
  for (const char* id : {"job-a", "job-b"}) server_.Create(id);
  v1::ListQuantizationJobsRequest request;
  request.set_parent("tenants/acme");
  request.set_page_size(1);
  v1::ListQuantizationJobsResponse response;
  ASSERT_TRUE(List(request, &response).ok());
  request.set_page_token(response.next_page_token());
  request.set_filter("state = QUEUED");
  EXPECT_TRUE(HasReason(List(request, &response), Reason::kInvalidPageToken));
  request.set_page_token("Zm9yZ2Vk");
  EXPECT_TRUE(HasReason(List(request, &response), Reason::kInvalidPageToken));
  request.clear_page_token();
  request.set_filter("state = FLYING");
  EXPECT_TRUE(HasReason(List(request, &response), Reason::kInvalidFilter));
}

TEST_F(JobRpcs, UpdateChangesLabelsAndPriority) {
  server_.Create("job-a");
  grpc::ClientContext context;
  v1::UpdateQuantizationJobRequest request;
  request.mutable_quantization_job()->set_name(NameOf("job-a"));
  request.mutable_quantization_job()->set_priority(9);
  (*request.mutable_quantization_job()->mutable_labels())["team"] = "nlp";
  request.mutable_update_mask()->add_paths("labels");
  request.mutable_update_mask()->add_paths("priority");
  v1::QuantizationJob job;
  ASSERT_TRUE(FromGrpc(server_.jobs->UpdateQuantizationJob(&context, request, &job)).ok());
  EXPECT_EQ(job.priority(), 9);
  v1::ListQuantizationJobsRequest list;
  list.set_parent("tenants/acme");
  list.set_filter("labels.team = nlp AND state = QUEUED AND method = rtn");
  v1::ListQuantizationJobsResponse found;
  ASSERT_TRUE(List(list, &found).ok());
  EXPECT_EQ(found.quantization_jobs_size(), 1);
  grpc::ClientContext stale;
  request.mutable_quantization_job()->set_etag("\"99\"");
  EXPECT_TRUE(HasReason(FromGrpc(server_.jobs->UpdateQuantizationJob(&stale, request, &job)),
                        Reason::kEtagMismatch));
}

TEST_F(JobRpcs, CancelAndDelete) {
  server_.Create("job-a");
  v1::QuantizationJob job;
  EXPECT_TRUE(HasReason(Delete("job-a"), Reason::kJobNotEnded));
  ASSERT_TRUE(Cancel("job-a", &job).ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
  ASSERT_TRUE(Cancel("job-a", &job).ok());  // idempotent
  EXPECT_TRUE(Delete("job-a").ok());
  EXPECT_TRUE(HasReason(Delete("job-a"), Reason::kJobNotFound));
  EXPECT_TRUE(Delete("job-a", /*allow_missing=*/true).ok());
  EXPECT_EQ(server_.Metric("quantry_jobs_finished_total{method=\"rtn\",outcome=\"cancelled\"}"), 1);
}

TEST_F(JobRpcs, EventsArePaged) {
  server_.Create("job-a");
  v1::QuantizationJob job;
  ASSERT_TRUE(Cancel("job-a", &job).ok());
  v1::ListJobEventsRequest request;
  request.set_parent(NameOf("job-a"));
  request.set_page_size(1);
  std::vector<std::int64_t> sequences;
  do {
    grpc::ClientContext context;
    v1::ListJobEventsResponse response;
    ASSERT_TRUE(FromGrpc(server_.jobs->ListJobEvents(&context, request, &response)).ok());
    for (const auto& event : response.events()) sequences.push_back(event.sequence());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(sequences, (std::vector<std::int64_t>{1, 2}));
  request.set_page_token("x");
  grpc::ClientContext context;
  v1::ListJobEventsResponse response;
  EXPECT_TRUE(HasReason(FromGrpc(server_.jobs->ListJobEvents(&context, request, &response)),
                        Reason::kInvalidPageToken));
}

TEST_F(JobRpcs, WithoutAnEngineMethodsSayWhy) {
  grpc::ClientContext context;
  v1::ListMethodsResponse response;
  const absl::Status status = FromGrpc(server_.jobs->ListMethods(&context, {}, &response));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("--engine-binary"), std::string::npos);
  EXPECT_NE(status.message().find("it failed (FILE_NOT_FOUND"), std::string::npos) << status;
  EXPECT_EQ(status.message().find("/nonexistent"), std::string::npos) << status;
}

TEST_F(JobRpcs, ServerInfo) {
  grpc::ClientContext context;
  v1::ServerInfo info;
  ASSERT_TRUE(FromGrpc(server_.jobs->GetServerInfo(&context, {}, &info)).ok());
  EXPECT_EQ(info.version(), QUANTRY_VERSION);
  EXPECT_EQ(info.max_page_size(), 1000);
  EXPECT_EQ(info.unimplemented_size(), 0);
}

TEST_F(JobRpcs, AQuotaRefusesWithItsDetails) {
  const auto set = [&](int64_t max_queued) {
    grpc::ClientContext context;
    v1::SetQuotaRequest request;
    request.set_parent("tenants/acme");
    request.set_max_queued(max_queued);
    v1::SetQuotaResponse response;
    return FromGrpc(server_.admin->SetQuota(&context, request, &response));
  };
  EXPECT_TRUE(HasReason(set(-1), Reason::kInvalidArgument));
  ASSERT_TRUE(set(1).ok());
  server_.Create("job-a");
  grpc::ClientContext context;
  v1::CreateQuantizationJobResponse response;
  const absl::Status refused = FromGrpc(
      server_.jobs->CreateQuantizationJob(&context, server_.JobRequest("job-b"), &response));
  EXPECT_TRUE(HasReason(refused, Reason::kQuotaQueued));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfterOf(refused).has_value());
  grpc::ClientContext reading;
  v1::GetQuotaRequest request;
  request.set_parent("tenants/acme");
  v1::GetQuotaResponse quota;
  ASSERT_TRUE(FromGrpc(server_.admin->GetQuota(&reading, request, &quota)).ok());
  EXPECT_EQ(quota.max_queued(), 1);
  EXPECT_EQ(quota.max_running(), 0);
  EXPECT_EQ(quota.queued(), 1);
  ASSERT_TRUE(set(0).ok());
  server_.Create("job-b");
}

TEST_F(JobRpcs, ATenantReadsOnlyWhatIsItsOwn) {
  const std::string inputs = server_.root() + "/inputs";
  std::filesystem::create_directories(inputs + "/acme/model");
  std::filesystem::create_directories(inputs + "/other/model");
  std::ofstream(inputs + "/sources") << R"({"tenant":"acme","uri_prefixes":["s3://m/acme"],)"
                                     << R"("local_roots":[")" << inputs << "/acme\"]}\n";
  server_.Stop();
  server_.config().add_local_roots(inputs);
  server_.config().set_tenant_sources_file(inputs + "/sources");
  server_.Start();
  const auto submit = [&](const std::string& id, const std::function<void(v1::JobSpec&)>& name) {
    v1::CreateQuantizationJobRequest request = server_.JobRequest(id);
    name(*request.mutable_quantization_job()->mutable_spec());
    grpc::ClientContext context;
    v1::CreateQuantizationJobResponse response;
    return FromGrpc(server_.jobs->CreateQuantizationJob(&context, request, &response));
  };
  const auto model_uri = [](const char* uri) {
    return [uri](v1::JobSpec& spec) { spec.mutable_model()->set_uri(uri); };
  };
  const auto model_path = [&](const std::string& path) {
    return
        [path = inputs + path](v1::JobSpec& spec) { spec.mutable_model()->set_local_path(path); };
  };
  EXPECT_TRUE(submit("job-uri", model_uri("s3://m/acme/llama")).ok());
  const absl::Status forbidden = submit("job-b", model_uri("s3://m/other/llama"));
  EXPECT_TRUE(HasReason(forbidden, Reason::kSourceForbidden)) << forbidden;
  EXPECT_EQ(forbidden.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_NE(forbidden.message().find("spec.model.uri"), std::string::npos) << forbidden;
  EXPECT_NE(forbidden.message().find("may read (s3://m/acme)"), std::string::npos) << forbidden;
  EXPECT_TRUE(HasReason(submit("job-c",
                               [](v1::JobSpec& spec) {
                                 spec.mutable_evaluation()->mutable_source()->set_uri("gs://m/t");
                               }),
                        Reason::kSourceForbidden));
  EXPECT_TRUE(HasReason(submit("job-d", model_uri("hf://org/name")), Reason::kSourceForbidden));
  EXPECT_TRUE(submit("job-path", model_path("/acme/model")).ok());
  EXPECT_TRUE(HasReason(submit("job-e", model_path("/other/model")), Reason::kSourceForbidden));

  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  ASSERT_EQ(lease.local_roots_size(), 1);
  EXPECT_EQ(lease.local_roots(0), inputs + "/acme");
}

TEST_F(JobRpcs, ARepeatFindsItsJobWithoutItsSources) {
  const std::string folder = server_.root() + "/inputs";
  std::filesystem::create_directories(folder);
  server_.Stop();
  server_.config().add_local_roots(folder);
  server_.Start();
  v1::CreateQuantizationJobRequest request = server_.JobRequest("");
  const std::string model = folder + "/model";
  std::filesystem::create_directories(model);
  request.mutable_quantization_job()->mutable_spec()->mutable_model()->set_local_path(model);
  request.set_request_id(NewUuid4());
  v1::QuantizationJob first;
  v1::QuantizationJob second;
  ASSERT_TRUE(Create(request, &first).ok());
  std::filesystem::remove(model);
  ASSERT_TRUE(Create(request, &second).ok());
  EXPECT_EQ(first.uid(), second.uid());
  request.set_request_id(NewUuid4());
  EXPECT_TRUE(HasReason(Create(request), Reason::kSourceMissing));
}

TEST_F(JobRpcs, RetryAsksForTheSourcesAgain) {
  const std::string file = server_.root() + "/sources";
  const auto restart_with = [&](const std::string& prefix) {
    std::ofstream(file) << R"({"tenant":"acme","uri_prefixes":[")" << prefix << "\"]}\n";
    server_.Stop();
    server_.config().set_tenant_sources_file(file);
    server_.Start();
  };
  restart_with("s3://m/acme");
  v1::CreateQuantizationJobRequest request = server_.JobRequest("job-a");
  request.mutable_quantization_job()->mutable_spec()->mutable_model()->set_uri("s3://m/acme/llama");
  grpc::ClientContext context;
  v1::CreateQuantizationJobResponse response;
  ASSERT_TRUE(server_.jobs->CreateQuantizationJob(&context, request, &response).ok());
  v1::QuantizationJob job;
  ASSERT_TRUE(Cancel("job-a", &job).ok());
  std::string request_id = NewUuid4();
  const auto retry = [&] {
    grpc::ClientContext call;
    v1::RetryQuantizationJobRequest again;
    again.set_name(NameOf("job-a"));
    again.set_request_id(request_id);
    return FromGrpc(server_.jobs->RetryQuantizationJob(&call, again, &job));
  };
  restart_with("s3://m/other");
  const absl::Status refused = retry();
  EXPECT_TRUE(HasReason(refused, Reason::kSourceForbidden)) << refused;
  EXPECT_EQ(server_.Get("job-a").state(), v1::JOB_STATE_CANCELLED);
  restart_with("s3://m/acme");
  EXPECT_TRUE(retry().ok());
  restart_with("s3://m/other");
  EXPECT_TRUE(retry().ok()) << "a repeat changes nothing and is told the same";
  ASSERT_TRUE(Cancel("job-a", &job).ok());
  ASSERT_TRUE(retry().ok()) << "also once the job has ended again";
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
  request_id = NewUuid4();
  EXPECT_TRUE(HasReason(retry(), Reason::kSourceForbidden)) << "another request is none";
}

TEST_F(JobRpcs, RetryQueuesACancelledJobAgain) {
  server_.Create("job-a");
  const auto retry = [&](const std::string& request_id) {
    grpc::ClientContext context;
    v1::RetryQuantizationJobRequest request;
    request.set_name(NameOf("job-a"));
    request.set_request_id(request_id);
    v1::QuantizationJob job;
    return FromGrpc(server_.jobs->RetryQuantizationJob(&context, request, &job));
  };
  EXPECT_TRUE(HasReason(retry("no uuid"), Reason::kInvalidArgument));
  EXPECT_TRUE(HasReason(retry(""), Reason::kJobNotRetryable));
  v1::QuantizationJob cancelled;
  ASSERT_TRUE(Cancel("job-a", &cancelled).ok());
  const std::string request_id = NewUuid4();
  EXPECT_TRUE(retry(request_id).ok());
  EXPECT_TRUE(retry(request_id).ok()) << "a repeat";
  EXPECT_EQ(server_.Get("job-a").state(), v1::JOB_STATE_QUEUED);
  FakeWorker worker(&server_, "w1");
  EXPECT_EQ(worker.Acquire().job(), NameOf("job-a"));
}

}  // namespace
}  // namespace quantry::server::testing
