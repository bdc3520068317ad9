// A whole quantryd inside a test: SQLite and folders below a temporary
// directory, real gRPC on loopback, no agent and no engine. And a worker that
// a test drives call by call.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "quantry/v1/admin_service.grpc.pb.h"
#include "quantry/v1/artifact_service.grpc.pb.h"
#include "quantry/v1/config.pb.h"
#include "quantry/v1/quantization_service.grpc.pb.h"
#include "quantry/v1/worker_service.grpc.pb.h"
#include "server/server_app.h"

namespace quantry::server::testing {

// The absl::Status behind a gRPC one, details included.
absl::Status FromGrpc(const grpc::Status& status);

class TestServer {
 public:
  explicit TestServer(const std::string& name);
  ~TestServer();

  void Start();
  void Stop() { app_.reset(); }
  ServerApp& app() { return *app_; }
  v1::ServerConfig& config() { return config_; }
  const Clock* wall_clock = nullptr;  // null: the system's
  const std::string& root() const { return root_; }

  // GET on the admin port; the whole response.
  std::string HttpGet(const std::string& path) const;
  // The value of one series, "name{label=\"x\"}"; -1 when it is not there.
  double Metric(const std::string& series) const;

  std::unique_ptr<v1::QuantizationService::Stub> jobs;
  std::unique_ptr<v1::ArtifactService::Stub> artifacts;
  std::unique_ptr<v1::AdminService::Stub> admin;
  std::unique_ptr<v1::WorkerService::Stub> workers;
  std::shared_ptr<grpc::Channel> tenant_channel;
  std::shared_ptr<grpc::Channel> worker_channel;

  // Uploads `text` as one blob of tenant "acme".
  v1::BlobFile Upload(const std::string& path, const std::string& text);
  // A request the server accepts; its blobs are uploaded.
  v1::CreateQuantizationJobRequest JobRequest(const std::string& id);
  v1::QuantizationJob Create(const std::string& id);
  v1::QuantizationJob Get(const std::string& id);

 private:
  std::string root_;
  v1::ServerConfig config_;
  std::unique_ptr<ServerApp> app_;
};

// Waits until `path` is gone, for 30 s at most: the server removes what was
// deleted on a thread of its own, which a slow store may hold up.
bool GoneSoon(const std::string& path);

// "tenants/acme/quantizationJobs/{id}"
std::string NameOf(const std::string& id);

// A worker driven by hand.
class FakeWorker {
 public:
  FakeWorker(TestServer* server, const std::string& id);
  void Register();
  // Leases a job; empty job name when there is none.
  v1::Lease Acquire(int wait_seconds = 0);
  v1::HeartbeatResponse Beat(const v1::Lease& lease, std::int64_t steps_done,
                             const std::vector<v1::JobEvent>& events = {}, std::int64_t offset = 0);
  // Writes files and manifest below the lease's prefix.
  v1::CompleteJobRequest WriteArtifact(const v1::Lease& lease);
  grpc::Status Complete(const v1::CompleteJobRequest& request);
  grpc::Status Fail(const v1::Lease& lease, bool cancelled, v1::FailJobResponse* response);

  const std::string& session() const { return session_; }

 private:
  TestServer* server_;
  std::string id_;
  std::string session_;
};

}  // namespace quantry::server::testing
