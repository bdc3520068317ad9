#include "client/cli/testing/fake_server.h"

#include <google/protobuf/util/json_util.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include <algorithm>
#include <thread>

#include "common/crc32c.h"
#include "common/digest.h"

namespace quantry::cli {
namespace {

constexpr size_t kReadChunk = 1000;
constexpr char kArtifact[] = "tenants/default/artifacts/0a1b2c3d-1111-4222-8333-444455556666";

}  // namespace

grpc::Status RpcError(grpc::StatusCode code, const std::string& reason, const std::string& message,
                      const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("quantry");
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  google::rpc::Status status;
  status.set_code(static_cast<int>(code));
  status.set_message(message);
  status.add_details()->PackFrom(info);
  return {code, message, status.SerializeAsString()};
}

FakeServer::FakeServer() {
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(static_cast<v1::QuantizationService::Service*>(this));
  builder.RegisterService(static_cast<v1::ArtifactService::Service*>(this));
  builder.RegisterService(static_cast<v1::AdminService::Service*>(this));
  server_ = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port);
  for (const char* name : {"rtn", "awq"}) {
    v1::MethodDescription* method = methods.add_methods();
    method->set_name(name);
    for (const int bits : {2, 3, 4, 8}) method->add_bits(bits);
    method->set_needs_calibration(std::string(name) == "awq");
    for (const char* format : {"compressed-tensors", "dense", "quantry"}) {
      method->add_output_formats(format);
    }
  }
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

void FakeServer::Publish(const std::string& job_name, std::map<std::string, std::string> contents) {
  v1::Manifest manifest = figures;
  manifest.set_schema("quantry.manifest.v1");
  manifest.set_job(job_name);
  for (const auto& [path, data] : contents) {
    v1::ArtifactFile* file = manifest.add_files();
    file->set_path(path);
    file->set_size_bytes(static_cast<int64_t>(data.size()));
    file->set_sha256(Sha256Hex(data));
    const size_t slash = path.find('/');
    if (slash == std::string::npos) continue;
    const std::string folder = path.substr(0, slash);
    if (manifest.outputs().empty() || manifest.outputs().rbegin()->path() != folder) {
      v1::OutputSummary* output = manifest.add_outputs();
      output->set_format(folder);
      output->set_path(folder);
    }
  }
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(manifest, &json, options).ok()) std::abort();
  artifact.set_name(kArtifact);
  artifact.set_job(job_name);
  artifact.set_uri("file:///artifacts/1");
  artifact.set_manifest_sha256(Sha256Hex(json));
  files = std::move(contents);
  files["manifest.json"] = json;
  v1::QuantizationJob& job = jobs[job_name];
  job.set_name(job_name);
  job.set_state(v1::JOB_STATE_SUCCEEDED);
  job.set_artifact(artifact.name());
  job.mutable_result()->set_artifact_uri(artifact.uri());
}

grpc::Status FakeServer::Quote(Context* context, const v1::CreateQuantizationJobRequest& request,
                               v1::CreateQuantizationJobResponse* response) {
  const auto deadline = std::chrono::steady_clock::now() + quote_takes;
  while (std::chrono::steady_clock::now() < deadline && !context->IsCancelled()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  std::lock_guard lock(mutex_);
  quotes.push_back(request);
  *response->mutable_quantization_job() = request.quantization_job();
  *response->mutable_quote() = quote;
  return quote_status;
}

grpc::Status FakeServer::CreateQuantizationJob(Context* context,
                                               const v1::CreateQuantizationJobRequest* request,
                                               v1::CreateQuantizationJobResponse* response) {
  if (request->validate_only()) return Quote(context, *request, response);
  std::lock_guard lock(mutex_);
  creates.push_back(*request);
  const auto trace = context->client_metadata().find("traceparent");
  const bool traced = trace != context->client_metadata().end();
  traceparents.push_back(traced ? std::string(trace->second.data(), trace->second.size()) : "");
  if (creates.size() <= creates_refused && !create_status.ok()) return create_status;
  v1::QuantizationJob* job = response->mutable_quantization_job();
  *job = request->quantization_job();
  const std::string id =
      request->quantization_job_id().empty() ? "made-up" : request->quantization_job_id();
  job->set_name(request->parent() + "/quantizationJobs/" + id);
  job->set_state(v1::JOB_STATE_QUEUED);
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetQuantizationJob(Context*, const v1::GetQuantizationJobRequest* request,
                                            v1::QuantizationJob* job) {
  std::lock_guard lock(mutex_);
  const auto found = jobs.find(request->name());
  if (found == jobs.end()) {
    return RpcError(grpc::NOT_FOUND, "JOB_NOT_FOUND", "no job " + request->name());
  }
  *job = found->second;
  return grpc::Status::OK;
}

grpc::Status FakeServer::RetryQuantizationJob(Context* context,
                                              const v1::RetryQuantizationJobRequest* request,
                                              v1::QuantizationJob* job) {
  {
    std::lock_guard lock(mutex_);
    retries.push_back(*request);
  }
  v1::GetQuantizationJobRequest get;
  get.set_name(request->name());
  grpc::Status found = GetQuantizationJob(context, &get, job);
  if (found.ok()) job->set_state(v1::JOB_STATE_QUEUED);
  return found;
}

grpc::Status FakeServer::ListQuantizationJobs(Context*,
                                              const v1::ListQuantizationJobsRequest* request,
                                              v1::ListQuantizationJobsResponse* response) {
  std::lock_guard lock(mutex_);
  lists.push_back(*request);
  if (!list_status.ok()) return list_status;
  const size_t from = request->page_token().empty() ? 0 : std::stoul(request->page_token());
  const size_t page = std::min<size_t>(2, static_cast<size_t>(request->page_size()));
  const size_t to = std::min(listed.size(), from + page);
  for (size_t i = from; i < to; ++i) *response->add_quantization_jobs() = listed[i];
  if (to < listed.size()) response->set_next_page_token(std::to_string(to));
  return grpc::Status::OK;
}

grpc::Status FakeServer::UpdateQuantizationJob(Context*,
                                               const v1::UpdateQuantizationJobRequest* request,
                                               v1::QuantizationJob* job) {
  std::lock_guard lock(mutex_);
  updates.push_back(*request);
  *job = request->quantization_job();
  return grpc::Status::OK;
}

grpc::Status FakeServer::DeleteQuantizationJob(Context*,
                                               const v1::DeleteQuantizationJobRequest* request,
                                               google::protobuf::Empty*) {
  std::lock_guard lock(mutex_);
  if (!delete_status.ok()) return delete_status;
  if (jobs.erase(request->name()) > 0 || request->allow_missing()) return grpc::Status::OK;
  return RpcError(grpc::NOT_FOUND, "JOB_NOT_FOUND", "no such job");
}

grpc::Status FakeServer::WatchQuantizationJob(
    Context* context, const v1::WatchQuantizationJobRequest* request,
    grpc::ServerWriter<v1::WatchQuantizationJobResponse>* writer) {
  WatchCall call;
  {
    std::lock_guard lock(mutex_);
    watched_after.push_back(request->after_sequence());
    watched_from.push_back(context->peer());
    call = watch_calls[std::min(watched_after.size(), watch_calls.size()) - 1];
  }
  for (const auto& message : call.messages) writer->Write(message);
  return call.status;
}

grpc::Status FakeServer::GetServerInfo(Context*, const v1::GetServerInfoRequest*,
                                       v1::ServerInfo* info) {
  info->set_version("fake");
  return grpc::Status::OK;
}

grpc::Status FakeServer::ListMethods(Context*, const v1::ListMethodsRequest*,
                                     v1::ListMethodsResponse* response) {
  std::this_thread::sleep_for(engine_takes);
  *response = methods;
  return grpc::Status::OK;
}

grpc::Status FakeServer::FindMissingBlobs(Context*, const v1::FindMissingBlobsRequest* request,
                                          v1::FindMissingBlobsResponse* response) {
  std::lock_guard lock(mutex_);
  for (const v1::BlobDigest& blob : request->blobs()) {
    if (blobs.count(blob.sha256()) > 0) continue;
    auto* missing = response->add_missing();
    *missing->mutable_blob() = blob;
    missing->set_committed_bytes(static_cast<int64_t>(partial_[blob.sha256()].size()));
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::Store(const std::string& sha256, const std::string& data) {
  if (Sha256Hex(data) != sha256) {
    return RpcError(grpc::DATA_LOSS, "BLOB_MISMATCH", "content is not the announced sha256");
  }
  blobs[sha256] = data;
  return grpc::Status::OK;
}

grpc::Status FakeServer::CheckHeld(const std::string& sha256, std::string& partial) {
  if (held_upload.refusals == 0 || sha256 != Sha256Hex(held_upload.content)) {
    return grpc::Status::OK;
  }
  --held_upload.refusals;
  partial += held_upload.content.substr(partial.size(), held_upload.step);
  if (partial == held_upload.content) blobs[sha256] = partial;
  return RpcError(grpc::RESOURCE_EXHAUSTED, "RESOURCE_LIMIT", "another call uploads the blob");
}

grpc::Status FakeServer::UploadBlob(Context*, grpc::ServerReader<v1::UploadBlobRequest>* reader,
                                    v1::UploadBlobResponse*) {
  v1::UploadBlobRequest request;
  reader->Read(&request);
  const v1::UploadBlobRequest::Header header = request.header();
  std::lock_guard lock(mutex_);
  upload_offsets.push_back(header.write_offset());
  std::string& data = partial_[header.blob().sha256()];
  if (grpc::Status held = CheckHeld(header.blob().sha256(), data); !held.ok()) return held;
  if (static_cast<size_t>(header.write_offset()) != data.size()) {
    return RpcError(grpc::OUT_OF_RANGE, "UPLOAD_OFFSET", "wrong offset");
  }
  while (reader->Read(&request)) {
    if (Crc32c(request.chunk().data()) != request.chunk().crc32c()) {
      return RpcError(grpc::INVALID_ARGUMENT, "CHUNK_CORRUPT", "crc32c differs");
    }
    data += request.chunk().data();
    if (upload_breaks_after >= 0 && static_cast<int64_t>(data.size()) >= upload_breaks_after) {
      upload_breaks_after = -1;
      return {upload_breaks_with, "gone for a moment"};
    }
  }
  return Store(header.blob().sha256(), data);
}

grpc::Status FakeServer::ListWorkers(Context*, const v1::ListWorkersRequest* request,
                                     v1::ListWorkersResponse* response) {
  const size_t from = request->page_token().empty() ? 0 : std::stoul(request->page_token());
  const size_t to = std::min(workers.size(), from + 2);
  for (size_t i = from; i < to; ++i) *response->add_workers() = workers[i];
  if (to < workers.size()) response->set_next_page_token(std::to_string(to));
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetArtifact(Context*, const v1::GetArtifactRequest* request,
                                     v1::Artifact* response) {
  if (request->name() != artifact.name()) {
    return RpcError(grpc::NOT_FOUND, "ARTIFACT_NOT_FOUND", "no artifact " + request->name());
  }
  *response = artifact;
  return grpc::Status::OK;
}

grpc::Status FakeServer::ReadArtifact(Context*, const v1::ReadArtifactRequest* request,
                                      grpc::ServerWriter<v1::ReadArtifactResponse>* writer) {
  if (on_read) on_read(request->path());
  std::lock_guard lock(mutex_);
  reads.emplace_back(request->path(), request->read_offset());
  const std::string& data = files[request->path()];
  if (request->path() == "manifest.json" && manifest_breaks > 0) {
    --manifest_breaks;
    return {grpc::UNAVAILABLE, "cut"};
  }
  ReadFault fault{ReadFault::kBreak, -1};
  if (request->path() != "manifest.json" && !read_faults.empty()) {
    fault = read_faults.front();
    if (fault.kind != ReadFault::kStayCorrupt) read_faults.erase(read_faults.begin());
  }
  for (size_t at = static_cast<size_t>(request->read_offset()); at < data.size();) {
    v1::ReadArtifactResponse chunk;
    std::string bytes = data.substr(at, kReadChunk);
    const bool now = fault.after_bytes >= 0 && static_cast<int64_t>(at) >= fault.after_bytes;
    if (now && fault.kind == ReadFault::kBreak) return {fault.breaks_with, "cut"};
    if (now && fault.kind != ReadFault::kBadCrc) bytes[0] = static_cast<char>(bytes[0] ^ 1);
    chunk.set_offset(static_cast<int64_t>(at));
    chunk.set_crc32c(Crc32c(bytes));
    if (now && fault.kind == ReadFault::kBadCrc) bytes[0] = static_cast<char>(bytes[0] ^ 1);
    at += bytes.size();
    chunk.set_data(std::move(bytes));
    writer->Write(chunk);
  }
  return grpc::Status::OK;
}

}  // namespace quantry::cli
