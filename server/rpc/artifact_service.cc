#include "server/rpc/artifact_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "quantry/v1/artifact_service.grpc.pb.h"
#include "server/rpc/artifact_streams.h"
#include "server/rpc/committed_manifest.h"
#include "server/rpc/convert.h"
#include "server/rpc/service_base.h"
#include "server/rpc/validation.h"

namespace quantry::server {
namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

constexpr int kMaxBlobsPerCall = 10000;
// Calls of one principal in work: each of them asks an object store thousands of times, on
// threads that everybody's transfers share.
constexpr int kFindsOfOne = 8;

class ArtifactCalls : public v1::ArtifactService::CallbackService,
                      private ServiceBase<ArtifactCalls> {
  friend ServiceBase;

 public:
  explicit ArtifactCalls(const ServiceContext* context)
      : ServiceBase(context, "ArtifactService", context->runtime->tenant) {}

  ServerUnaryReactor* FindMissingBlobs(CallbackServerContext* call,
                                       const v1::FindMissingBlobsRequest* request,
                                       v1::FindMissingBlobsResponse* response) override {
    return RunOn(runtime_->artifacts, "FindMissingBlobs", call, request, response,
                 &ArtifactCalls::FindMissing);
  }
  grpc::ServerReadReactor<v1::UploadBlobRequest>* UploadBlob(
      CallbackServerContext* call, v1::UploadBlobResponse* response) override {
    return StartUpload(context_, call, response);
  }
  ServerUnaryReactor* GetArtifact(CallbackServerContext* call,
                                  const v1::GetArtifactRequest* request,
                                  v1::Artifact* response) override {
    return RunOn(runtime_->artifacts, "GetArtifact", call, request, response, &ArtifactCalls::Get);
  }
  ServerUnaryReactor* ListArtifacts(CallbackServerContext* call,
                                    const v1::ListArtifactsRequest* request,
                                    v1::ListArtifactsResponse* response) override {
    return Run("ListArtifacts", call, request, response, &ArtifactCalls::List);
  }
  grpc::ServerWriteReactor<v1::ReadArtifactResponse>* ReadArtifact(
      CallbackServerContext* call, const v1::ReadArtifactRequest* request) override {
    return StartRead(context_, call, *request);
  }

 private:
  absl::Status FindMissing(const v1::FindMissingBlobsRequest& request,
                           v1::FindMissingBlobsResponse* response, const Call& call) {
    CountedPlace place(&runtime_->blob_finds);
    const absl::Status counted =
        place.Take(call.principal(), {.most = kFindsOfOne,
                                      .what = "FindMissingBlobs in work",
                                      .advice = "ask again when one of them is done",
                                      .retry_after = std::chrono::seconds(1)});
    if (!counted.ok()) return counted;
    auto tenant = ParseTenantName(request.parent());
    if (!tenant.ok()) return tenant.status();
    if (request.blobs_size() > kMaxBlobsPerCall) {
      return MakeError(Reason::kInvalidArgument,
                       absl::StrCat("blobs: wanted at most ", kMaxBlobsPerCall, ", got ",
                                    request.blobs_size(), "; ask in parts"));
    }
    std::vector<BlobId> blobs;
    for (const v1::BlobDigest& blob : request.blobs()) {
      blobs.push_back({blob.sha256(), blob.size_bytes()});
    }
    const auto states =
        context_->blobs->FindAll(*tenant, blobs, [&call] { return call.Awaited(); });
    if (!states.ok()) return states.status();
    for (int i = 0; i < request.blobs_size(); ++i) {
      const BlobState& state = (*states)[static_cast<size_t>(i)];
      if (state.complete) continue;
      v1::FindMissingBlobsResponse::Missing& missing = *response->add_missing();
      *missing.mutable_blob() = request.blobs(i);
      missing.set_committed_bytes(state.committed_bytes);
    }
    return absl::OkStatus();
  }

  absl::Status Get(const v1::GetArtifactRequest& request, v1::Artifact* response) {
    auto name = ParseArtifactName(request.name());
    if (!name.ok()) return name.status();
    auto artifact = context_->store->GetArtifact(name->tenant, name->uid);
    if (!artifact.ok()) return artifact.status();
    auto manifest = ReadManifest(context_->artifacts, *artifact);
    if (!manifest.ok()) return manifest.status();
    *response = ToProto(*artifact);
    *response->mutable_manifest() = *std::move(manifest);
    return absl::OkStatus();
  }

  absl::Status List(const v1::ListArtifactsRequest& request, v1::ListArtifactsResponse* response) {
    auto tenant = ParseTenantName(request.parent());
    if (!tenant.ok()) return tenant.status();
    auto limit = PageSize(request.page_size());
    if (!limit.ok()) return limit.status();
    const std::string scope = absl::StrCat("artifacts\n", *tenant);
    std::optional<Cursor> after;
    if (!request.page_token().empty()) {
      auto cursor = context_->page_tokens->DecodeCursor(scope, request.page_token());
      if (!cursor.ok()) return cursor.status();
      after = *std::move(cursor);
    }
    auto page = context_->store->ListArtifacts(*tenant, *limit, std::move(after));
    if (!page.ok()) return page.status();
    for (const Artifact& artifact : page->artifacts) {
      *response->add_artifacts() = ToProto(artifact);
    }
    if (page->next) {
      response->set_next_page_token(context_->page_tokens->Encode(scope, *page->next));
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<grpc::Service> NewArtifactService(const ServiceContext* context) {
  return std::make_unique<ArtifactCalls>(context);
}

}  // namespace quantry::server
