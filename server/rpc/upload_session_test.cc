// Uploads against a quota of bytes; the streams themselves are in
// server/testing/artifact_rpcs_test.cc.
#include "server/rpc/upload_session.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>

#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"
#include "gtest/gtest.h"
#include "server/artifacts/local_blob_store.h"
#include "server/jobs/rules.h"

namespace quantry::server {
namespace {

constexpr std::int64_t kStride = std::int64_t{16} << 20;  // between looks at the quota

class UploadSessionTest : public testing::Test {
 protected:
  UploadSessionTest()
      : root_(testing::TempDir() + "upload-session-" + std::to_string(getpid())),
        store_(*OpenLocalBlobStore(root_)) {}
  ~UploadSessionTest() override { std::filesystem::remove_all(root_); }

  std::unique_ptr<UploadSession> Session() {
    return std::make_unique<UploadSession>(
        store_.get(),
        UploadRules{.max_blob_bytes = 4 * kStride,
                    .admit = [](const v1::UploadBlobRequest&) { return absl::OkStatus(); },
                    .room =
                        [this](const std::string& tenant, std::int64_t more) {
                          return CheckStoredBytes({.tenant = tenant, .max_stored_bytes = limit_},
                                                  *store_->StoredBytes(tenant), more);
                        },
                    .count = [](std::int64_t) {}});
  }
  // The header of `text` from `offset` on, then as many bytes in chunks.
  static absl::Status Send(UploadSession& session, const std::string& text, std::int64_t offset,
                           std::int64_t bytes) {
    v1::UploadBlobRequest request;
    request.mutable_header()->set_parent("tenants/acme");
    request.mutable_header()->mutable_blob()->set_sha256(Sha256Hex(text));
    request.mutable_header()->mutable_blob()->set_size_bytes(
        static_cast<std::int64_t>(text.size()));
    request.mutable_header()->set_write_offset(offset);
    if (absl::Status status = session.Take(request); !status.ok()) return status;
    for (const std::int64_t end = offset + bytes; offset < end; offset += kChunkBytes) {
      const auto size = static_cast<size_t>(std::min(kChunkBytes, end - offset));
      request.mutable_chunk()->set_data(text.substr(static_cast<size_t>(offset), size));
      request.mutable_chunk()->set_crc32c(Crc32c(request.chunk().data()));
      if (absl::Status status = session.Take(request); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  const std::string root_;
  const std::unique_ptr<BlobStore> store_;
  std::int64_t limit_ = kStride;
  v1::UploadBlobResponse response_;
};

TEST_F(UploadSessionTest, OneThatFillsTheQuotaIsTaken) {
  const std::string text(kStride, 'x');
  const auto session = Session();
  const absl::Status sent = Send(*session, text, 0, kStride);
  ASSERT_TRUE(sent.ok()) << sent;
  EXPECT_TRUE(session->Complete(nullptr, &response_).ok());
  EXPECT_EQ(response_.committed_bytes(), kStride);
}

TEST_F(UploadSessionTest, OneThatWantsNoMoreBytesNeedsNoRoom) {
  const std::string text(kStride, 'x');
  ASSERT_TRUE(Send(*Session(), text, 0, kStride).ok());  // ended before its end was told
  limit_ = 1;                                            // less than is there
  const auto session = Session();
  const absl::Status sent = Send(*session, text, kStride, 0);
  ASSERT_TRUE(sent.ok()) << sent;
  EXPECT_TRUE(session->Complete(nullptr, &response_).ok());
  EXPECT_TRUE(store_->Find("acme", {Sha256Hex(text), kStride})->complete);
}

TEST_F(UploadSessionTest, OneThatGoesOnIsRefusedOnceTheQuotaIsFull) {
  const std::string text(2 * kStride, 'x');
  EXPECT_TRUE(HasReason(Send(*Session(), text, 0, kChunkBytes), Reason::kQuotaStoredBytes))
      << "at its header";
  limit_ = 2 * kStride;
  const auto session = Session();
  ASSERT_TRUE(Send(*session, text, 0, kStride - kChunkBytes).ok());
  limit_ = kStride;  // as when another upload took the rest
  v1::UploadBlobRequest chunk;
  chunk.mutable_chunk()->set_data(std::string(kChunkBytes, 'x'));
  chunk.mutable_chunk()->set_crc32c(Crc32c(chunk.chunk().data()));
  EXPECT_TRUE(HasReason(session->Take(chunk), Reason::kQuotaStoredBytes)) << "at its stride";
}

}  // namespace
}  // namespace quantry::server
