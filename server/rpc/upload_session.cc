#include "server/rpc/upload_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crc32c.h"
#include "common/errors.h"
#include "common/ids.h"

namespace quantry::server {
namespace {

// How much one upload may write between looks at its tenant's quota of bytes.
constexpr std::int64_t kQuotaStride = std::int64_t{16} << 20;

}  // namespace

UploadSession::UploadSession(BlobStore* blobs, UploadRules rules)
    : blobs_(blobs), rules_(std::move(rules)) {}

absl::Status UploadSession::Take(const v1::UploadBlobRequest& request) {
  switch (request.kind_case()) {
    case v1::UploadBlobRequest::kHeader:
      return Header(request);
    case v1::UploadBlobRequest::kChunk:
      return Chunk(request.chunk());
    case v1::UploadBlobRequest::KIND_NOT_SET:
      break;
  }
  return MakeError(Reason::kInvalidArgument, "wanted header or chunk, got neither");
}

absl::Status UploadSession::Header(const v1::UploadBlobRequest& request) {
  if (!tenant_.empty()) {
    return MakeError(Reason::kInvalidArgument, "wanted one header, got another");
  }
  if (absl::Status status = rules_.admit(request); !status.ok()) return status;
  const v1::UploadBlobRequest::Header& header = request.header();
  auto tenant = ParseTenantName(header.parent());
  if (!tenant.ok()) return tenant.status();
  blob_ = {header.blob().sha256(), header.blob().size_bytes()};
  if (blob_.size_bytes < 0 || blob_.size_bytes > rules_.max_blob_bytes) {
    return MakeError(Reason::kInvalidArgument,
                     absl::StrCat("blob.size_bytes: wanted 0 to ", rules_.max_blob_bytes, ", got ",
                                  blob_.size_bytes));
  }
  auto state = blobs_->Find(*tenant, blob_);
  if (!state.ok()) return state.status();
  tenant_ = *std::move(tenant);
  if (state->complete) return absl::OkStatus();  // chunks are taken and dropped
  // One that has all its bytes takes no more room, whatever the quota has become.
  if (const std::int64_t left = blob_.size_bytes - state->committed_bytes; left > 0) {
    if (absl::Status room = rules_.room(tenant_, left); !room.ok()) return room;
  }
  auto upload = blobs_->Begin(tenant_, blob_, header.write_offset());
  if (!upload.ok()) return upload.status();
  upload_ = *std::move(upload);
  return absl::OkStatus();
}

absl::Status UploadSession::Chunk(const v1::UploadBlobRequest::Chunk& chunk) {
  if (tenant_.empty()) {
    return MakeError(Reason::kInvalidArgument, "wanted the header first, got a chunk");
  }
  if (static_cast<std::int64_t>(chunk.data().size()) > kChunkBytes) {
    return MakeError(Reason::kInvalidArgument,
                     absl::StrCat("wanted chunks of at most ", kChunkBytes, " bytes, got ",
                                  chunk.data().size()));
  }
  if (const std::uint32_t crc = Crc32c(chunk.data()); crc != chunk.crc32c()) {
    return MakeError(Reason::kChunkCorrupt, absl::StrCat("wanted crc32c ", chunk.crc32c(), ", got ",
                                                         crc, "; send the chunk again"));
  }
  if (upload_ == nullptr) return absl::OkStatus();
  if (absl::Status status = upload_->Append(chunk.data()); !status.ok()) return status;
  const auto bytes = static_cast<std::int64_t>(chunk.data().size());
  rules_.count(bytes);
  // Uploads side by side each looked before they began.
  unchecked_ += bytes;
  const bool whole = upload_->committed_bytes() == blob_.size_bytes;
  if (unchecked_ < kQuotaStride || whole) return absl::OkStatus();
  unchecked_ = 0;
  return rules_.room(tenant_, 0);
}

absl::Status UploadSession::Complete(const TransferCheck& check, v1::UploadBlobResponse* response) {
  if (tenant_.empty()) {
    return MakeError(Reason::kInvalidArgument, "wanted a header, got an empty stream");
  }
  if (upload_ != nullptr) {
    // To an object store the bytes go now.
    if (absl::Status status = upload_->Finish(check); !status.ok()) return status;
  }
  response->set_name(FormatBlobName(tenant_, blob_.sha256));
  response->set_committed_bytes(blob_.size_bytes);
  return absl::OkStatus();
}

}  // namespace quantry::server
