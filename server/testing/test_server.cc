#include "server/testing/test_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/config_loader.h"
#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/listen_address.h"
#include "google/protobuf/util/json_util.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "server/server_config.h"

namespace quantry::server::testing {
namespace {

namespace fs = std::filesystem;

constexpr char kParent[] = "tenants/acme";

v1::ArtifactFile WriteFile(const std::string& folder, const std::string& path,
                           const std::string& text) {
  const fs::path file = fs::path(folder) / path;
  fs::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
  v1::ArtifactFile row;
  row.set_path(path);
  row.set_size_bytes(static_cast<std::int64_t>(text.size()));
  row.set_sha256(Sha256Hex(text));
  return row;
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status proto;
  if (proto.ParseFromString(status.error_details()) && proto.code() != 0) {
    return FromRpcStatus(proto);
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

bool GoneSoon(const std::string& path) {
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (fs::exists(path)) {
    if (std::chrono::steady_clock::now() > patience) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

std::string NameOf(const std::string& id) {
  return absl::StrCat(kParent, "/quantizationJobs/", id);
}

TestServer::TestServer(const std::string& name)
    : root_(absl::StrCat(::testing::TempDir(), name, "-", getpid())) {
  fs::remove_all(root_);
  EXPECT_TRUE(LoadConfig({}, &config_).ok());
  config_.set_data_dir(root_ + "/data");
  config_.set_listen("127.0.0.1:0");
  config_.set_worker_listen("127.0.0.1:0");
  config_.set_admin_listen("127.0.0.1:0");
  config_.set_embedded(false);
  config_.set_engine_binary("/nonexistent/quantry-engine");
  config_.set_log_level("error");
  config_.set_drain_timeout_s(5);
}

TestServer::~TestServer() {
  app_.reset();
  fs::remove_all(root_);
}

void TestServer::Start() {
  ASSERT_TRUE(FinishServerConfig(&config_).ok());
  auto started = ServerApp::Start(config_, wall_clock);
  ASSERT_TRUE(started.ok()) << started.status();
  app_ = *std::move(started);
  // A fresh connection for each server: a cached one would be backing off.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const auto credentials = grpc::InsecureChannelCredentials();
  tenant_channel = grpc::CreateCustomChannel(app_->addresses().tenant, credentials, arguments);
  worker_channel = grpc::CreateCustomChannel(app_->addresses().worker, credentials, arguments);
  jobs = v1::QuantizationService::NewStub(tenant_channel);
  artifacts = v1::ArtifactService::NewStub(tenant_channel);
  admin = v1::AdminService::NewStub(tenant_channel);
  workers = v1::WorkerService::NewStub(worker_channel);
}

std::string TestServer::HttpGet(const std::string& path) const {
  const auto address = ParseListenAddress(app_->admin_address());
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(address->port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string response;
  char buffer[4096];
  for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;) {
    response.append(buffer, static_cast<size_t>(got));
  }
  close(fd);
  return response;
}

double TestServer::Metric(const std::string& series) const {
  for (const absl::string_view line : absl::StrSplit(HttpGet("/metrics"), '\n')) {
    const std::string text(line);
    if (text.rfind(series + " ", 0) == 0) return std::atof(text.c_str() + series.size());
  }
  return -1;
}

v1::BlobFile TestServer::Upload(const std::string& path, const std::string& text) {
  v1::BlobFile file;
  file.set_path(path);
  file.set_sha256(Sha256Hex(text));
  file.set_size_bytes(static_cast<std::int64_t>(text.size()));
  grpc::ClientContext context;
  v1::UploadBlobResponse response;
  auto stream = artifacts->UploadBlob(&context, &response);
  v1::UploadBlobRequest request;
  request.mutable_header()->set_parent(kParent);
  request.mutable_header()->mutable_blob()->set_sha256(file.sha256());
  request.mutable_header()->mutable_blob()->set_size_bytes(file.size_bytes());
  stream->Write(request);
  request.mutable_chunk()->set_data(text);
  request.mutable_chunk()->set_crc32c(Crc32c(text));
  stream->Write(request);
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  return file;
}

v1::CreateQuantizationJobRequest TestServer::JobRequest(const std::string& id) {
  v1::CreateQuantizationJobRequest request;
  request.set_parent(kParent);
  request.set_quantization_job_id(id);
  v1::JobSpec& spec = *request.mutable_quantization_job()->mutable_spec();
  *spec.mutable_model()->mutable_blobs()->add_files() = Upload("config.json", "{}");
  spec.mutable_method()->mutable_rtn()->mutable_grid()->set_bits(4);
  return request;
}

v1::QuantizationJob TestServer::Create(const std::string& id) {
  grpc::ClientContext context;
  v1::CreateQuantizationJobResponse response;
  const grpc::Status status = jobs->CreateQuantizationJob(&context, JobRequest(id), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.quantization_job();
}

v1::QuantizationJob TestServer::Get(const std::string& id) {
  grpc::ClientContext context;
  v1::GetQuantizationJobRequest request;
  request.set_name(NameOf(id));
  v1::QuantizationJob job;
  const grpc::Status status = jobs->GetQuantizationJob(&context, request, &job);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return job;
}

FakeWorker::FakeWorker(TestServer* server, const std::string& id) : server_(server), id_(id) {
  Register();
}

void FakeWorker::Register() {
  grpc::ClientContext context;
  v1::RegisterWorkerRequest request;
  request.mutable_worker()->set_worker_id(id_);
  request.mutable_worker()->set_incarnation(NewUuid4());
  request.mutable_worker()->set_slots(4);
  request.mutable_worker()->set_engine_version("1.0");
  request.mutable_worker()->add_methods("rtn");
  request.mutable_worker()->add_methods("awq");
  v1::RegisterWorkerResponse response;
  const grpc::Status status = server_->workers->RegisterWorker(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  session_ = response.session();
}

v1::Lease FakeWorker::Acquire(int wait_seconds) {
  grpc::ClientContext context;
  v1::AcquireJobRequest request;
  request.set_session(session_);
  request.set_acquire_id(NewUuid4());
  request.mutable_wait()->set_seconds(wait_seconds);
  v1::AcquireJobResponse response;
  const grpc::Status status = server_->workers->AcquireJob(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.lease();
}

v1::HeartbeatResponse FakeWorker::Beat(const v1::Lease& lease, std::int64_t steps_done,
                                       const std::vector<v1::JobEvent>& events,
                                       std::int64_t offset) {
  grpc::ClientContext context;
  v1::HeartbeatRequest request;
  request.set_session(session_);
  v1::JobBeat& beat = *request.add_jobs();
  beat.set_job(lease.job());
  beat.set_job_uid(lease.job_uid());
  beat.set_epoch(lease.epoch());
  beat.mutable_progress()->set_stage(v1::STAGE_QUANTIZING);
  beat.mutable_progress()->set_steps_done(steps_done);
  beat.set_event_offset(offset);
  for (const v1::JobEvent& event : events) *beat.add_events() = event;
  v1::HeartbeatResponse response;
  const grpc::Status status = server_->workers->Heartbeat(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

v1::CompleteJobRequest FakeWorker::WriteArtifact(const v1::Lease& lease) {
  const std::string folder = lease.output_uri().substr(std::string("file://").size());
  v1::Manifest manifest;
  manifest.set_schema("quantry.manifest.v1");
  manifest.set_job(lease.job());
  *manifest.add_files() = WriteFile(folder, "config.json", "{\"a\": 1}");
  *manifest.add_files() = WriteFile(folder, "dense/model.safetensors", std::string(1'500'000, 'w'));
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(manifest, &json, options).ok());
  WriteFile(folder, "manifest.json", json);
  v1::CompleteJobRequest request;
  request.set_session(session_);
  request.set_job(lease.job());
  request.set_job_uid(lease.job_uid());
  request.set_epoch(lease.epoch());
  request.set_manifest_sha256(Sha256Hex(json));
  request.set_file_count(3);
  request.set_total_bytes(static_cast<std::int64_t>(json.size()) + 1'500'008);
  request.mutable_result()->mutable_bits()->set_linears(4.5);
  return request;
}

grpc::Status FakeWorker::Complete(const v1::CompleteJobRequest& request) {
  grpc::ClientContext context;
  v1::CompleteJobResponse response;
  return server_->workers->CompleteJob(&context, request, &response);
}

grpc::Status FakeWorker::Fail(const v1::Lease& lease, bool cancelled,
                              v1::FailJobResponse* response) {
  grpc::ClientContext context;
  v1::FailJobRequest request;
  request.set_session(session_);
  request.set_job(lease.job());
  request.set_job_uid(lease.job_uid());
  request.set_epoch(lease.epoch());
  request.set_cancelled(cancelled);
  request.mutable_error()->set_failure_class(v1::FAILURE_CLASS_USER);
  request.mutable_error()->set_reason("INVALID_CHECKPOINT");
  request.mutable_error()->set_message("wanted a model, got nothing");
  return server_->workers->FailJob(&context, request, response);
}

}  // namespace quantry::server::testing
