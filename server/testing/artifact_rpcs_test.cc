// Uploads and downloads over real gRPC.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"
#include "server/testing/test_server.h"

namespace quantry::server::testing {
namespace {

class ArtifactRpcs : public ::testing::Test {
 protected:
  ArtifactRpcs() : server_("artifact-rpcs") { server_.Start(); }

  struct Chunk {
    std::string data;
    bool damage = false;
  };

  absl::Status Upload(const std::string& sha256, std::int64_t size, std::int64_t offset,
                      const std::vector<Chunk>& chunks) {
    grpc::ClientContext context;
    v1::UploadBlobResponse response;
    auto stream = server_.artifacts->UploadBlob(&context, &response);
    v1::UploadBlobRequest request;
    request.mutable_header()->set_parent("tenants/acme");
    request.mutable_header()->mutable_blob()->set_sha256(sha256);
    request.mutable_header()->mutable_blob()->set_size_bytes(size);
    request.mutable_header()->set_write_offset(offset);
    stream->Write(request);
    for (const Chunk& chunk : chunks) {
      request.mutable_chunk()->set_data(chunk.data);
      request.mutable_chunk()->set_crc32c(Crc32c(chunk.data) + (chunk.damage ? 1 : 0));
      stream->Write(request);
    }
    stream->WritesDone();
    return FromGrpc(stream->Finish());
  }

  v1::FindMissingBlobsResponse Find(const std::string& sha256, std::int64_t size) {
    grpc::ClientContext context;
    v1::FindMissingBlobsRequest request;
    request.set_parent("tenants/acme");
    request.add_blobs()->set_sha256(sha256);
    request.mutable_blobs(0)->set_size_bytes(size);
    v1::FindMissingBlobsResponse response;
    EXPECT_TRUE(FromGrpc(server_.artifacts->FindMissingBlobs(&context, request, &response)).ok());
    return response;
  }

  // A finished job with an artifact; returns the artifact's name.
  std::string MakeArtifact() {
    server_.Create("job-a");
    FakeWorker worker(&server_, "w1");
    const v1::Lease lease = worker.Acquire();
    folder_ = lease.output_uri().substr(7);
    EXPECT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
    return server_.Get("job-a").artifact();
  }

  absl::Status Read(const std::string& name, const std::string& path, std::int64_t offset,
                    std::int64_t limit, std::string* data) {
    grpc::ClientContext context;
    v1::ReadArtifactRequest request;
    request.set_name(name);
    request.set_path(path);
    request.set_read_offset(offset);
    request.set_read_limit(limit);
    auto stream = server_.artifacts->ReadArtifact(&context, request);
    v1::ReadArtifactResponse response;
    while (stream->Read(&response)) {
      EXPECT_EQ(response.crc32c(), Crc32c(response.data()));
      EXPECT_EQ(response.offset(), offset + static_cast<std::int64_t>(data->size()));
      data->append(response.data());
    }
    return FromGrpc(stream->Finish());
  }

  TestServer server_;
  std::string folder_;
};

// Times of files end in 2262, and begin as long before 1970: a larger grace would turn into none.
TEST_F(ArtifactRpcs, NoGraceIsTooLongForTheClock) {
  ASSERT_TRUE(Upload(Sha256Hex("text"), 4, 0, {{"text"}}).ok());
  for (const std::int64_t hours : {10'000'000LL, 24LL * 36525}) {
    grpc::ClientContext context;
    v1::CollectGarbageRequest request;
    request.mutable_grace()->set_seconds(3600 * hours);
    v1::CollectGarbageResponse response;
    const absl::Status status =
        FromGrpc(server_.admin->CollectGarbage(&context, request, &response));
    EXPECT_EQ(HasReason(status, Reason::kInvalidArgument), hours == 10'000'000) << status;
    EXPECT_EQ(Find(Sha256Hex("text"), 4).missing_size(), 0);
  }
}

TEST_F(ArtifactRpcs, UploadsResumeAfterABreak) {
  const std::string text(1'000'000, 'q');
  const std::string sha256 = Sha256Hex(text);
  EXPECT_EQ(Find(sha256, 1'000'000).missing_size(), 1);
  // The stream ends before all bytes came: they are kept.
  const absl::Status early = Upload(sha256, 1'000'000, 0, {{text.substr(0, 400'000)}});
  EXPECT_TRUE(HasReason(early, Reason::kUploadOffset)) << early;
  EXPECT_EQ(MetadataOf(early, "committed"), "400000");
  EXPECT_EQ(Find(sha256, 1'000'000).missing(0).committed_bytes(), 400'000);
  const absl::Status wrong = Upload(sha256, 1'000'000, 300'000, {{text.substr(300'000, 1)}});
  EXPECT_TRUE(HasReason(wrong, Reason::kUploadOffset));
  EXPECT_TRUE(
      Upload(sha256, 1'000'000, 400'000, {{text.substr(400'000, 500'000)}, {text.substr(900'000)}})
          .ok());
  EXPECT_EQ(Find(sha256, 1'000'000).missing_size(), 0);
  EXPECT_TRUE(Upload(sha256, 1'000'000, 0, {{text.substr(0, 10)}}).ok());  // already there
  EXPECT_EQ(server_.Metric("quantry_artifact_bytes_total{direction=\"upload\"}"), 1'000'000);
}

TEST_F(ArtifactRpcs, DamagedUploadsAreRefused) {
  const std::string sha256 = Sha256Hex("abc");
  EXPECT_TRUE(HasReason(Upload(sha256, 3, 0, {{"abc", true}}), Reason::kChunkCorrupt));
  EXPECT_TRUE(HasReason(Upload(sha256, 3, 0, {{"abX"}}), Reason::kBlobMismatch));
  EXPECT_TRUE(HasReason(Upload(sha256, 3, 0, {{"abcd"}}), Reason::kUploadOffset));
  EXPECT_TRUE(HasReason(Upload("../../x", 3, 0, {{"abc"}}), Reason::kInvalidArgument));
  EXPECT_TRUE(HasReason(Upload(sha256, -1, 0, {}), Reason::kInvalidArgument));
  EXPECT_TRUE(HasReason(Upload(sha256, std::int64_t{1} << 60, 0, {}), Reason::kInvalidArgument));
  const std::string large((512 << 10) + 1, 'x');
  EXPECT_TRUE(
      HasReason(Upload(Sha256Hex(large), static_cast<std::int64_t>(large.size()), 0, {{large}}),
                Reason::kInvalidArgument));
  EXPECT_EQ(Find(sha256, 3).missing_size(), 1);
}

TEST_F(ArtifactRpcs, AQuotaOfBytesRefusesUploadsAndJobs) {
  ASSERT_TRUE(Upload(Sha256Hex("12345678"), 8, 0, {{"12345678"}}).ok());
  grpc::ClientContext context;
  v1::SetQuotaRequest request;
  request.set_parent("tenants/acme");
  request.set_max_stored_bytes(10);
  v1::SetQuotaResponse usage;
  ASSERT_TRUE(FromGrpc(server_.admin->SetQuota(&context, request, &usage)).ok());
  EXPECT_EQ(usage.stored_bytes(), 8);

  const absl::Status refused = Upload(Sha256Hex("abc"), 3, 0, {{"abc"}});
  EXPECT_TRUE(HasReason(refused, Reason::kQuotaStoredBytes)) << refused;
  EXPECT_TRUE(RetryAfterOf(refused).has_value());
  EXPECT_TRUE(Upload(Sha256Hex("12345678"), 8, 0, {{"12345678"}}).ok()) << "it is there already";
  v1::CreateQuantizationJobRequest job = server_.JobRequest("job-a");  // with an upload of 2 bytes
  grpc::ClientContext submit;
  v1::CreateQuantizationJobResponse response;
  EXPECT_TRUE(HasReason(FromGrpc(server_.jobs->CreateQuantizationJob(&submit, job, &response)),
                        Reason::kQuotaStoredBytes));
}

TEST_F(ArtifactRpcs, UploadsSideBySideDoNotPassAQuotaOfBytes) {
  constexpr std::int64_t kChunk = std::int64_t{1} << 19;
  constexpr std::int64_t kChunks = 36;
  grpc::ClientContext quota_context;
  v1::SetQuotaRequest quota;
  quota.set_parent("tenants/acme");
  quota.set_max_stored_bytes(kChunk * kChunks * 3 / 2);
  v1::SetQuotaResponse usage;
  ASSERT_TRUE(FromGrpc(server_.admin->SetQuota(&quota_context, quota, &usage)).ok());

  v1::UploadBlobRequest chunk;
  chunk.mutable_chunk()->set_data(std::string(kChunk, 'x'));
  chunk.mutable_chunk()->set_crc32c(Crc32c(chunk.chunk().data()));
  const auto begin = [&](grpc::ClientContext& context, v1::UploadBlobResponse& response,
                         char digit) {
    auto stream = server_.artifacts->UploadBlob(&context, &response);
    v1::UploadBlobRequest header;
    header.mutable_header()->set_parent("tenants/acme");
    header.mutable_header()->mutable_blob()->set_sha256(std::string(64, digit));
    header.mutable_header()->mutable_blob()->set_size_bytes(kChunk * kChunks);
    stream->Write(header);
    return stream;
  };
  grpc::ClientContext contexts[2];
  v1::UploadBlobResponse responses[2];
  const auto first = begin(contexts[0], responses[0], 'a');
  const auto second = begin(contexts[1], responses[1], 'b');
  bool open = true;
  for (int i = 0; open && i < kChunks; ++i) open = first->Write(chunk) && second->Write(chunk);
  first->WritesDone();
  second->WritesDone();
  const std::string outcomes[] = {ReasonOf(FromGrpc(first->Finish())),
                                  ReasonOf(FromGrpc(second->Finish()))};
  EXPECT_TRUE(outcomes[0] == "QUOTA_STORED_BYTES" || outcomes[1] == "QUOTA_STORED_BYTES")
      << outcomes[0] << " " << outcomes[1];
}

TEST_F(ArtifactRpcs, HeaderComesFirstAndOnce) {
  v1::UploadBlobResponse response;
  v1::UploadBlobRequest chunk;
  chunk.mutable_chunk()->set_data("x");
  grpc::ClientContext first;
  auto stream = server_.artifacts->UploadBlob(&first, &response);
  stream->Write(chunk);
  stream->WritesDone();
  EXPECT_TRUE(HasReason(FromGrpc(stream->Finish()), Reason::kInvalidArgument));
  grpc::ClientContext second;
  stream = server_.artifacts->UploadBlob(&second, &response);
  stream->WritesDone();
  EXPECT_TRUE(HasReason(FromGrpc(stream->Finish()), Reason::kInvalidArgument));
}

TEST_F(ArtifactRpcs, ReadsWholeFilesAndParts) {
  const std::string name = MakeArtifact();
  std::string data;
  ASSERT_TRUE(Read(name, "dense/model.safetensors", 0, 0, &data).ok());
  EXPECT_EQ(data, std::string(1'500'000, 'w'));
  data.clear();
  ASSERT_TRUE(Read(name, "config.json", 2, 3, &data).ok());
  EXPECT_EQ(data, "a\":");
  data.clear();
  ASSERT_TRUE(Read(name, "config.json", 8, 0, &data).ok());  // the end
  EXPECT_EQ(data, "");
  EXPECT_EQ(Read(name, "config.json", 9, 0, &data).code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(Read(name, "manifest.json", 0, 0, &data).ok());
  EXPECT_NE(data.find("dense/model.safetensors"), std::string::npos);
}

TEST_F(ArtifactRpcs, OnlyFilesOfTheManifestAreRead) {
  const std::string name = MakeArtifact();
  std::ofstream(folder_ + "/extra") << "x";
  std::string data;
  for (const char* path : {"extra", "../x", "/etc/passwd", "", "dense"}) {
    EXPECT_TRUE(HasReason(Read(name, path, 0, 0, &data), Reason::kArtifactNotFound)) << path;
  }
  EXPECT_TRUE(HasReason(
      Read("tenants/other" + name.substr(name.find("/artifacts")), "config.json", 0, 0, &data),
      Reason::kArtifactNotFound));
}

TEST_F(ArtifactRpcs, ChangedFilesAreNoticed) {
  const std::string name = MakeArtifact();
  std::string data;
  std::ofstream(folder_ + "/config.json") << "{\"a\": 2}";  // same size
  EXPECT_TRUE(HasReason(Read(name, "config.json", 0, 0, &data), Reason::kArtifactCorrupt));
  std::ofstream(folder_ + "/config.json") << "{}";
  EXPECT_TRUE(HasReason(Read(name, "config.json", 0, 1, &data), Reason::kArtifactCorrupt));
  std::filesystem::remove(folder_ + "/config.json");
  EXPECT_TRUE(HasReason(Read(name, "config.json", 0, 0, &data), Reason::kArtifactCorrupt));
  std::ofstream(folder_ + "/manifest.json") << "{}";
  grpc::ClientContext context;
  v1::GetArtifactRequest request;
  request.set_name(name);
  v1::Artifact artifact;
  const absl::Status status =
      FromGrpc(server_.artifacts->GetArtifact(&context, request, &artifact));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
}

TEST_F(ArtifactRpcs, GetAndListShowTheArtifact) {
  const std::string name = MakeArtifact();
  grpc::ClientContext get_context;
  v1::GetArtifactRequest get;
  get.set_name(name);
  v1::Artifact artifact;
  ASSERT_TRUE(FromGrpc(server_.artifacts->GetArtifact(&get_context, get, &artifact)).ok());
  EXPECT_EQ(artifact.manifest().files_size(), 2);
  EXPECT_EQ(artifact.job(), NameOf("job-a"));
  EXPECT_EQ(artifact.uri(), "file://" + folder_);
  grpc::ClientContext list_context;
  v1::ListArtifactsRequest list;
  list.set_parent("tenants/acme");
  v1::ListArtifactsResponse page;
  ASSERT_TRUE(FromGrpc(server_.artifacts->ListArtifacts(&list_context, list, &page)).ok());
  ASSERT_EQ(page.artifacts_size(), 1);
  EXPECT_EQ(page.artifacts(0).name(), name);
  EXPECT_FALSE(page.artifacts(0).has_manifest());
}

TEST_F(ArtifactRpcs, DeleteRemovesTheFiles) {
  MakeArtifact();
  EXPECT_TRUE(std::filesystem::exists(folder_));
  grpc::ClientContext context;
  v1::DeleteQuantizationJobRequest request;
  request.set_name(NameOf("job-a"));
  google::protobuf::Empty response;
  ASSERT_TRUE(FromGrpc(server_.jobs->DeleteQuantizationJob(&context, request, &response)).ok());
  EXPECT_TRUE(GoneSoon(folder_));
}

}  // namespace
}  // namespace quantry::server::testing
