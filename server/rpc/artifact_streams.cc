#include "server/rpc/artifact_streams.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/utf8_prefix.h"
#include "server/rpc/committed_manifest.h"
#include "server/rpc/stored_bytes.h"
#include "server/rpc/upload_session.h"

namespace quantry::server {
namespace {

// Admits the caller and takes a place of his. `request`: nullptr where none has come yet.
absl::Status Enter(Call& call, const google::protobuf::Message* request, CountedPlace& place) {
  if (absl::Status admitted = call.Admit(request); !admitted.ok()) return admitted;
  return place.Take(call.principal(), {.most = kArtifactStreamsOfOne,
                                       .what = "uploads and downloads open",
                                       .advice = "go on when one of them is done",
                                       .retry_after = std::chrono::seconds(1)});
}

// Reads one request at a time; the next read starts when the chunk is on disk.
class UploadReactor : public grpc::ServerReadReactor<v1::UploadBlobRequest> {
 public:
  UploadReactor(const ServiceContext* context, grpc::CallbackServerContext* call,
                v1::UploadBlobResponse* response)
      : context_(context),
        response_(response),
        call_("/quantry.v1.ArtifactService/UploadBlob", context->runtime, call),
        place_(&context->runtime->artifact_streams),
        session_(context->blobs, Rules()) {
    const absl::Status admitted = Enter(call_, nullptr, place_);
    if (!admitted.ok()) {
      Finish(call_.End(admitted));
    } else {
      grpc::ServerReadReactor<v1::UploadBlobRequest>::StartRead(&request_);
    }
  }

  void OnReadDone(bool ok) override {
    const bool chunk = ok && begun_;
    (chunk ? context_->runtime->artifacts : context_->runtime->uploads)->Post([this, ok] {
      Step(ok);
    });
  }
  void OnDone() override { delete this; }

 private:
  void Step(bool more) {
    begun_ = true;
    if (context_->runtime->draining) return End(RpcRuntime::Draining());
    absl::Status status = call_.Standing();
    if (status.ok()) status = more ? session_.Take(request_) : Complete();
    if (!more || !status.ok()) return End(status);
    request_.Clear();
    grpc::ServerReadReactor<v1::UploadBlobRequest>::StartRead(&request_);
  }

  UploadRules Rules() {
    return {
        .max_blob_bytes = context_->limits.max_blob_bytes,
        .admit = [this](const v1::UploadBlobRequest& header) { return call_.AdmitName(header); },
        .room = [this](const std::string& tenant,
                       std::int64_t more) { return CheckRoomForUpload(*context_, tenant, more); },
        .count =
            [this](std::int64_t bytes) {
              context_->runtime->metrics->artifact_bytes.With({"upload"})
                  .Increment(static_cast<double>(bytes));
            }};
  }

  absl::Status Complete() {
    const auto goes_on = [this](std::int64_t) {
      return context_->runtime->draining ? RpcRuntime::Draining() : call_.Standing();
    };
    return session_.Complete(goes_on, response_);
  }

  // Last: the reactor may be gone when it returns.
  void End(const absl::Status& status) {
    session_.Drop();  // before the client can retry
    place_.GiveBack();
    const grpc::Status final = call_.End(status);
    Finish(final);
  }

  const ServiceContext* const context_;
  v1::UploadBlobResponse* const response_;
  Call call_;
  CountedPlace place_;
  v1::UploadBlobRequest request_;
  bool begun_ = false;  // the first message is taken
  UploadSession session_;
};

class ReadReactor : public grpc::ServerWriteReactor<v1::ReadArtifactResponse> {
 public:
  ReadReactor(const ServiceContext* context, grpc::CallbackServerContext* call,
              const v1::ReadArtifactRequest& request)
      : context_(context),
        request_(request),
        call_("/quantry.v1.ArtifactService/ReadArtifact", context->runtime, call),
        place_(&context->runtime->artifact_streams) {
    const absl::Status admitted = Enter(call_, &request_, place_);
    if (!admitted.ok()) {
      Finish(call_.End(admitted));
    } else {
      context_->runtime->artifacts->Post([this] { Begin(); });
    }
  }

  void OnWriteDone(bool ok) override {
    context_->runtime->artifacts->Post([this, ok] {
      if (!ok) return End(absl::CancelledError("the caller went away"));
      Next();
    });
  }
  void OnDone() override { delete this; }

 private:
  void Begin() {
    absl::Status status = call_.Standing();
    if (status.ok()) status = Open();
    if (!status.ok()) return End(status);
    Next();
  }

  absl::Status Open() {
    auto name = ParseArtifactName(request_.name());
    if (!name.ok()) return name.status();
    auto artifact = context_->store->GetArtifact(name->tenant, name->uid);
    if (!artifact.ok()) return artifact.status();
    if (absl::Status status = FindFile(*artifact); !status.ok()) return status;
    auto reader = context_->artifacts->Open(artifact->uri, request_.path());
    if (HasReason(reader.status(), Reason::kArtifactNotFound)) {
      // The manifest lists it: it went with its job just now, or it is lost.
      artifact = context_->store->GetArtifact(name->tenant, name->uid);
      if (!artifact.ok()) return artifact.status();
      return NotAsCommitted(request_.path(), sha256_, "no such file");
    }
    if (!reader.ok()) return reader.status();
    reader_ = *std::move(reader);
    const std::int64_t size = reader_->size_bytes();
    if (size_bytes_ >= 0 && size != size_bytes_) {
      return NotAsCommitted(request_.path(), absl::StrCat(size_bytes_, " bytes"),
                            absl::StrCat(size, " bytes"));
    }
    offset_ = request_.read_offset();
    if (offset_ < 0 || request_.read_limit() < 0) {
      return MakeError(Reason::kInvalidArgument,
                       "read_offset, read_limit: wanted 0 or more, got less");
    }
    if (offset_ > size) {
      return absl::OutOfRangeError(
          absl::StrCat("read_offset: wanted 0 to ", size, ", got ", offset_));
    }
    end_ = request_.read_limit() == 0 ? size
                                      : offset_ + std::min(request_.read_limit(), size - offset_);
    hashing_ = offset_ == 0 && end_ == size;
    return absl::OkStatus();
  }

  // What the manifest says about the file; manifest.json by the artifact row.
  absl::Status FindFile(const Artifact& artifact) {
    if (request_.path() == kManifestName) {
      sha256_ = artifact.manifest_sha256;
      return absl::OkStatus();
    }
    auto manifest = ReadManifest(context_->artifacts, artifact);
    if (!manifest.ok()) return manifest.status();
    for (const v1::ArtifactFile& file : manifest->files()) {
      if (file.path() != request_.path()) continue;
      sha256_ = file.sha256();
      size_bytes_ = file.size_bytes();
      return absl::OkStatus();
    }
    return MakeError(Reason::kArtifactNotFound,
                     absl::StrCat("wanted a path of the manifest or ", std::string(kManifestName),
                                  ", got '", Utf8Prefix(request_.path(), 500), "'"));
  }

  void Next() {
    if (context_->runtime->draining) return End(RpcRuntime::Draining());
    if (absl::Status status = call_.Standing(); !status.ok()) return End(status);
    if (offset_ == end_) return End(CheckHash());
    auto data = reader_->ReadAt(offset_, std::min(kChunkBytes, end_ - offset_));
    if (!data.ok()) return End(data.status());
    if (data->empty()) {
      return End(NotAsCommitted(request_.path(), absl::StrCat(end_, " bytes"),
                                absl::StrCat(offset_, " bytes")));
    }
    if (hashing_) hash_.Update(*data);
    response_.set_offset(offset_);
    response_.set_crc32c(Crc32c(*data));
    offset_ += static_cast<std::int64_t>(data->size());
    context_->runtime->metrics->artifact_bytes.With({"download"})
        .Increment(static_cast<double>(data->size()));
    response_.set_data(*std::move(data));
    StartWrite(&response_);
  }

  absl::Status CheckHash() {
    if (!hashing_ || sha256_.empty()) return absl::OkStatus();
    const std::string actual = hash_.FinishHex();
    return actual == sha256_ ? absl::OkStatus() : NotAsCommitted(request_.path(), sha256_, actual);
  }

  // Last: the reactor may be gone when it returns.
  void End(const absl::Status& status) {
    place_.GiveBack();  // before the client can go on
    const grpc::Status final = call_.End(status);
    Finish(final);
  }

  const ServiceContext* const context_;
  const v1::ReadArtifactRequest request_;
  Call call_;
  CountedPlace place_;
  std::unique_ptr<ArtifactReader> reader_;
  std::string sha256_;
  std::int64_t size_bytes_ = -1;  // -1: not known
  std::int64_t offset_ = 0;
  std::int64_t end_ = 0;
  bool hashing_ = false;  // the whole file is read: its sha256 is checked
  Sha256 hash_;
  v1::ReadArtifactResponse response_;
};

}  // namespace

grpc::ServerReadReactor<v1::UploadBlobRequest>* StartUpload(const ServiceContext* context,
                                                            grpc::CallbackServerContext* call,
                                                            v1::UploadBlobResponse* response) {
  return new UploadReactor(context, call, response);
}

grpc::ServerWriteReactor<v1::ReadArtifactResponse>* StartRead(
    const ServiceContext* context, grpc::CallbackServerContext* call,
    const v1::ReadArtifactRequest& request) {
  return new ReadReactor(context, call, request);
}

}  // namespace quantry::server
