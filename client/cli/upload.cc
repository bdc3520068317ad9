#include "client/cli/upload.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <utility>

#include "client/cli/backoff.h"
#include "client/cli/errors.h"
#include "client/cli/format.h"
#include "client/cli/text.h"
#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

constexpr size_t kUploadReadBytes = 1 << 20;
constexpr size_t kChunkBytes = 512 << 10;  // artifact_service.proto's limit
// The same while another call holds the blob; about 4 min. A server lets go of a
// client that was lost without a word after 80 s.
constexpr int kMaxHeldTries = 60;

absl::Status ReadError(const LocalFile& file) {
  return absl::InvalidArgumentError(Cat("cannot read \"", file.path, "\""));
}

absl::Status Changed(const LocalFile& file) {
  return MakeError(Reason::kBlobMismatch,
                   Cat("\"", file.path, "\" changed while it was uploaded: wanted ",
                       file.size_bytes, " bytes as hashed, got others"),
                   {{"path", file.path}});
}

absl::StatusOr<std::string> HashFile(const LocalFile& file, TransferMeter& meter,
                                     const Interrupter* interrupter) {
  std::ifstream in(file.path, std::ios::binary);
  if (!in) return ReadError(file);
  Sha256 hash;
  std::string buffer(kUploadReadBytes, '\0');
  int64_t total = 0;
  while (in) {
    if (interrupter != nullptr && interrupter->fired() != 0) {
      return absl::CancelledError("interrupted before anything was submitted");
    }
    in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    const auto got = static_cast<size_t>(in.gcount());
    hash.Update(std::string_view(buffer.data(), got));
    total += static_cast<int64_t>(got);
    meter.Add(static_cast<int64_t>(got));
  }
  if (in.bad()) return ReadError(file);
  if (total != file.size_bytes) return Changed(file);
  return hash.FinishHex();
}

// Another call uploads the same blob (a submit beside this one, or one of ours
// whose end the server has not noticed yet).
bool IsHeld(const absl::Status& status) { return HasReason(status, Reason::kResourceLimit); }

// A quota or a full disk, which want somebody to do something. gRPC itself ends calls
// without a reason when the server's calls hold too much memory.
bool IsFull(const absl::Status& status) {
  return absl::IsResourceExhausted(status) && !ReasonOf(status).empty() && !IsHeld(status);
}

bool MayUploadAgain(const absl::Status& status) {
  return (IsBreak(status) && !IsFull(status)) || HasReason(status, Reason::kUploadOffset) ||
         HasReason(status, Reason::kChunkCorrupt);
}

using Writer = grpc::ClientWriterInterface<v1::UploadBlobRequest>;

// The file's bytes from `offset` on. A server that has had enough (or broke)
// ends the stream; Finish says which.
absl::Status WriteChunks(const LocalFile& file, int64_t offset, Writer& writer,
                         TransferMeter& meter) {
  std::ifstream in(file.path, std::ios::binary);
  in.seekg(offset);
  if (!in) return ReadError(file);
  v1::UploadBlobRequest request;
  std::string buffer(kChunkBytes, '\0');
  for (int64_t at = offset; at < file.size_bytes;) {
    const int64_t wanted = std::min<int64_t>(kChunkBytes, file.size_bytes - at);
    if (!in.read(buffer.data(), wanted)) return Changed(file);
    const std::string_view data(buffer.data(), static_cast<size_t>(wanted));
    request.mutable_chunk()->set_data(data.data(), data.size());
    request.mutable_chunk()->set_crc32c(Crc32c(data));
    if (!writer.Write(request)) return absl::OkStatus();
    at += wanted;
    meter.Add(wanted);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<v1::BlobFile>> Uploader::Hash(const std::vector<LocalFile>& files) {
  int64_t total = 0;
  for (const LocalFile& file : files) total += file.size_bytes;
  TransferMeter meter(connection_.env(), line_, "hashing", total);
  std::vector<v1::BlobFile> blobs;
  for (const LocalFile& file : files) {
    meter.Start(file.name);
    absl::StatusOr<std::string> sha256 = HashFile(file, meter, connection_.env().interrupter);
    if (!sha256.ok()) return sha256.status();
    v1::BlobFile& blob = blobs.emplace_back();
    blob.set_path(file.name);
    blob.set_sha256(*std::move(sha256));
    blob.set_size_bytes(file.size_bytes);
  }
  return blobs;
}

absl::StatusOr<std::vector<v1::FindMissingBlobsResponse::Missing>> Uploader::Missing(
    const std::vector<v1::BlobFile>& blobs) {
  v1::FindMissingBlobsRequest request;
  request.set_parent(parent_);
  for (const v1::BlobFile& blob : blobs) {
    v1::BlobDigest* digest = request.add_blobs();
    digest->set_sha256(blob.sha256());
    digest->set_size_bytes(blob.size_bytes());
  }
  v1::FindMissingBlobsResponse response;
  Environment& env = connection_.env();
  Backoff backoff(kFirstWait, kLongestWait);
  for (int tries = 1;; ++tries) {
    absl::Status status = connection_.Call(
        connection_.artifacts(), &Connection::Artifacts::FindMissingBlobs, request, &response);
    if (status.ok()) break;
    // Others with the same credential ask, too.
    if (!HasReason(status, Reason::kResourceLimit) || tries >= kMaxTries) return status;
    env.sleep(backoff.Next(env.random()));
  }
  return std::vector<v1::FindMissingBlobsResponse::Missing>(response.missing().begin(),
                                                            response.missing().end());
}

absl::Status Uploader::SendOnce(const LocalFile& file, const v1::BlobFile& blob, int64_t offset,
                                TransferMeter& meter) {
  grpc::ClientContext context;
  connection_.AddMetadata(context);
  // Of the whole file: whatever is left to send, the server hashes and stores all of it.
  const int64_t slowest_s = 60 + file.size_bytes / kSlowestBytesPerSecond;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(slowest_s));
  const Interrupter::Guard guard(connection_.env().interrupter,
                                 [&context] { context.TryCancel(); });
  v1::UploadBlobResponse response;
  const auto writer = connection_.artifacts().UploadBlob(&context, &response);
  v1::UploadBlobRequest request;
  request.mutable_header()->set_parent(parent_);
  request.mutable_header()->mutable_blob()->set_sha256(blob.sha256());
  request.mutable_header()->mutable_blob()->set_size_bytes(blob.size_bytes());
  request.mutable_header()->set_write_offset(offset);
  if (writer->Write(request)) {
    if (absl::Status read = WriteChunks(file, offset, *writer, meter); !read.ok()) {
      context.TryCancel();
      (void)writer->Finish();
      return read;
    }
    writer->WritesDone();
  }
  return connection_.Explain(writer->Finish());
}

absl::Status Uploader::Send(const LocalFile& file, const v1::BlobFile& blob, int64_t offset,
                            TransferMeter& meter) {
  Environment& env = connection_.env();
  Backoff backoff(kFirstWait, kLongestWait);
  bool told = false;
  // What the other call sends is advance too, so a long upload is waited for.
  for (int tries = 1;; ++tries) {
    const int64_t before = meter.done();
    absl::Status status = SendOnce(file, blob, offset, meter);
    const int most = IsHeld(status) ? kMaxHeldTries : kMaxTries;
    if (status.ok() || !MayUploadAgain(status) || tries >= most) return status;
    if (IsHeld(status) && !std::exchange(told, true)) {
      line_.Say(Cat("quantry: waiting: ", file.name, ": ", std::string(status.message())));
    }
    env.sleep(backoff.Next(env.random()));
    connection_.Refresh(status);
    const auto missing = Missing({blob});
    if (!missing.ok()) {
      if (!MayUploadAgain(missing.status())) return missing.status();
      meter.Rewind(meter.done() - before);
      continue;
    }
    if (missing->empty()) return absl::OkStatus();
    const int64_t committed = missing->front().committed_bytes();
    meter.Rewind(meter.done() - before - (committed - offset));
    if (committed > offset) tries = 0;
    offset = committed;
  }
}

absl::StatusOr<std::vector<v1::BlobFile>> Uploader::Upload(const std::vector<LocalFile>& files) {
  absl::StatusOr<std::vector<v1::BlobFile>> blobs = Hash(files);
  if (!blobs.ok()) return blobs.status();
  const auto missing = Missing(*blobs);
  if (!missing.ok()) return missing.status();
  std::map<std::string, int64_t> offsets;
  int64_t total = 0;
  for (const auto& entry : *missing) {
    const int64_t rest = entry.blob().size_bytes() - entry.committed_bytes();
    if (offsets.emplace(entry.blob().sha256(), entry.committed_bytes()).second) total += rest;
  }
  TransferMeter meter(connection_.env(), line_, "uploading", total);
  const size_t count = offsets.size();
  for (size_t i = 0; i < files.size(); ++i) {
    const auto found = offsets.find((*blobs)[i].sha256());
    if (found == offsets.end()) continue;
    meter.Start(files[i].name);
    absl::Status status = Send(files[i], (*blobs)[i], found->second, meter);
    if (!status.ok()) return status;
    offsets.erase(found);
  }
  line_.Clear();
  if (count == 0) {
    line_.Say(Cat("uploaded nothing: the server has all ", files.size(), " files"));
  } else {
    const double rate = static_cast<double>(total) / std::max(1e-3, meter.seconds());
    line_.Say(Cat("uploaded ", count, " of ", files.size(), " files, ", Bytes(total), " at ",
                  Bytes(static_cast<int64_t>(rate)), "/s"));
  }
  return blobs;
}

}  // namespace quantry::cli
