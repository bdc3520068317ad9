#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "quantry/v1/admin_service.grpc.pb.h"
#include "quantry/v1/artifact_service.grpc.pb.h"
#include "quantry/v1/quantization_service.grpc.pb.h"

namespace quantry::cli {

// One server in the test's own process, on a free loopback port, that does what
// its script says: faults included. Fill the script before the calls; read the
// record after them. Thread-safe where gRPC needs it.
class FakeServer : public v1::QuantizationService::Service,
                   public v1::ArtifactService::Service,
                   public v1::AdminService::Service {
 public:
  // One WatchQuantizationJob call: what it sends and how it ends.
  struct WatchCall {
    std::vector<v1::WatchQuantizationJobResponse> messages;
    grpc::Status status;
  };
  // One thing to go wrong in ReadArtifact, used up by one call.
  struct ReadFault {
    enum Kind { kBreak, kBadCrc, kBadContent, kStayCorrupt } kind = kBreak;
    int64_t after_bytes = 0;
    grpc::StatusCode breaks_with = grpc::UNAVAILABLE;
  };

  FakeServer();
  ~FakeServer() override;

  const std::string& address() const { return address_; }

  // Script.
  v1::ListMethodsResponse methods;
  std::chrono::milliseconds engine_takes{0};        // before it tells its methods
  std::map<std::string, v1::QuantizationJob> jobs;  // by name
  std::vector<v1::QuantizationJob> listed;          // pages of two
  grpc::Status list_status;                         // of every list
  grpc::Status delete_status;                       // of every delete
  std::vector<v1::WorkerStatus> workers;            // pages of two
  std::vector<WatchCall> watch_calls;               // the last one repeats
  v1::Quote quote;
  grpc::Status quote_status;                 // of every validate_only create
  std::chrono::milliseconds quote_takes{0};  // before it answers
  grpc::Status create_status;                // of the first creates
  size_t creates_refused = 1;                // so many of them
  int64_t upload_breaks_after = -1;          // bytes; once
  grpc::StatusCode upload_breaks_with = grpc::UNAVAILABLE;
  // Another call's upload: refuses ours so many times, and gets on between them.
  struct HeldUpload {
    int refusals = 0;
    std::string content = {};
    size_t step = 0;
  } held_upload;
  v1::Artifact artifact;
  v1::Manifest figures;                      // what a published manifest holds beside its files
  std::map<std::string, std::string> files;  // of the artifact
  std::vector<ReadFault> read_faults;        // one a data-carrying call
  int manifest_breaks = 0;                   // first reads of the manifest that break
  std::function<void(const std::string& path)> on_read = nullptr;  // before each ReadArtifact

  // Record.
  std::vector<v1::CreateQuantizationJobRequest> creates;
  std::vector<v1::CreateQuantizationJobRequest> quotes;  // creates with validate_only
  std::vector<std::string> traceparents;                 // of the creates
  std::vector<v1::ListQuantizationJobsRequest> lists;
  std::vector<v1::UpdateQuantizationJobRequest> updates;
  std::vector<v1::RetryQuantizationJobRequest> retries;
  std::vector<int64_t> watched_after;
  std::vector<std::string> watched_from;  // the client's end of the connection of each watch
  std::vector<int64_t> upload_offsets;
  std::vector<std::pair<std::string, int64_t>> reads;  // path, offset
  std::map<std::string, std::string> blobs;            // complete ones, by sha256

  // Adds the files, their manifest and the artifact record.
  void Publish(const std::string& job_name, std::map<std::string, std::string> contents);

 private:
  using Context = grpc::ServerContext;
  grpc::Status CreateQuantizationJob(Context*, const v1::CreateQuantizationJobRequest*,
                                     v1::CreateQuantizationJobResponse*) override;
  grpc::Status Quote(Context*, const v1::CreateQuantizationJobRequest&,
                     v1::CreateQuantizationJobResponse*);
  grpc::Status GetQuantizationJob(Context*, const v1::GetQuantizationJobRequest*,
                                  v1::QuantizationJob*) override;
  grpc::Status ListQuantizationJobs(Context*, const v1::ListQuantizationJobsRequest*,
                                    v1::ListQuantizationJobsResponse*) override;
  grpc::Status DeleteQuantizationJob(Context*, const v1::DeleteQuantizationJobRequest*,
                                     google::protobuf::Empty*) override;
  grpc::Status UpdateQuantizationJob(Context*, const v1::UpdateQuantizationJobRequest*,
                                     v1::QuantizationJob*) override;
  grpc::Status RetryQuantizationJob(Context*, const v1::RetryQuantizationJobRequest*,
                                    v1::QuantizationJob*) override;
  grpc::Status WatchQuantizationJob(Context*, const v1::WatchQuantizationJobRequest*,
                                    grpc::ServerWriter<v1::WatchQuantizationJobResponse>*) override;
  grpc::Status GetServerInfo(Context*, const v1::GetServerInfoRequest*, v1::ServerInfo*) override;
  grpc::Status ListMethods(Context*, const v1::ListMethodsRequest*,
                           v1::ListMethodsResponse*) override;
  grpc::Status FindMissingBlobs(Context*, const v1::FindMissingBlobsRequest*,
                                v1::FindMissingBlobsResponse*) override;
  grpc::Status UploadBlob(Context*, grpc::ServerReader<v1::UploadBlobRequest>*,
                          v1::UploadBlobResponse*) override;
  grpc::Status ListWorkers(Context*, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse*) override;
  grpc::Status GetArtifact(Context*, const v1::GetArtifactRequest*, v1::Artifact*) override;
  grpc::Status ReadArtifact(Context*, const v1::ReadArtifactRequest*,
                            grpc::ServerWriter<v1::ReadArtifactResponse>*) override;
  grpc::Status Store(const std::string& sha256, const std::string& data);
  // OK, or what the holder of the upload leaves to others.
  grpc::Status CheckHeld(const std::string& sha256, std::string& partial);

  std::mutex mutex_;
  std::string address_;
  std::map<std::string, std::string> partial_;  // uploads in the making
  std::unique_ptr<grpc::Server> server_;
};

// A status with ErrorInfo, as quantryd sends it.
grpc::Status RpcError(grpc::StatusCode code, const std::string& reason, const std::string& message,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace quantry::cli
