// What every BlobStore must do, over each of them, and what is special to one.
#include "server/artifacts/blob_store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/digest.h"
#include "common/errors.h"
#include "common/storage.h"
#include "server/artifacts/local_blob_store.h"
#include "server/artifacts/object_blob_store.h"
#include "tests/support/s3_test_server.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

enum class Store {
  kLocal,
  kS3,     // a server of this test's own
  kNamed,  // the empty prefix QUANTRY_TEST_STORAGE_URI names
};

BlobId IdOf(const std::string& text) {
  return {.sha256 = Sha256Hex(text), .size_bytes = static_cast<std::int64_t>(text.size())};
}

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

class BlobStoreTest : public testing::TestWithParam<Store> {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "blobs-" + std::to_string(getpid());
    fs::remove_all(root_);
    fs::create_directories(root_);
    auto uri = RootUri();
    if (absl::IsNotFound(uri.status())) GTEST_SKIP() << uri.status().message();
    ASSERT_TRUE(uri.ok()) << uri.status();
    uri_ = *uri;
    store_ = Open("spool");
    ASSERT_NE(store_, nullptr);
  }
  void TearDown() override {
    if (GetParam() != Store::kLocal && store_ != nullptr) {
      EXPECT_TRUE((*OpenStorage(uri_))->DeleteTree("").ok());
    }
    fs::remove_all(root_);
  }

  absl::StatusOr<std::string> RootUri() {
    static int count = 0;
    if (GetParam() == Store::kLocal) return UriFromLocalPath(root_ + "/blobs");
    const auto bucket = GetParam() == Store::kS3 ? S3TestBucket() : NamedRoot();
    if (!bucket.ok()) return bucket;
    return JoinUri(*bucket, "uploads-" + std::to_string(++count));
  }
  static absl::StatusOr<std::string> NamedRoot() {
    const char* uri = std::getenv("QUANTRY_TEST_STORAGE_URI");
    if (uri == nullptr) return absl::NotFoundError("QUANTRY_TEST_STORAGE_URI is not set");
    return uri;
  }
  // The store as one server has it.
  std::unique_ptr<BlobStore> Open(const std::string& spool) {
    auto store = OpenBlobStore(uri_, root_ + "/" + spool);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  absl::Status Upload(BlobStore& store, const std::string& text) {
    auto upload = store.Begin("t", IdOf(text), 0);
    if (!upload.ok()) return upload.status();
    if (absl::Status status = (*upload)->Append(text); !status.ok()) return status;
    return (*upload)->Finish();
  }
  // As a worker reads it.
  std::string Content(const BlobId& blob) {
    auto bytes = (*OpenStorage(store_->Uri("t")))->Read(blob.sha256, 1 << 20);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    return bytes.value_or("");
  }

  std::string root_;
  std::string uri_;
  std::unique_ptr<BlobStore> store_;
};

INSTANTIATE_TEST_SUITE_P(Stores, BlobStoreTest,
                         testing::Values(Store::kLocal, Store::kS3, Store::kNamed),
                         [](const auto& store) {
                           switch (store.param) {
                             case Store::kLocal:
                               return "local";
                             case Store::kS3:
                               return "s3";
                             case Store::kNamed:
                               return "named";
                           }
                           return "";
                         });

TEST_P(BlobStoreTest, StoresWholeBlobs) {
  const BlobId blob = IdOf("hello world");
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_TRUE((*upload)->Append("hello ").ok());
  EXPECT_TRUE((*upload)->Append("world").ok());
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(store_->Find("t", blob)->complete);
  EXPECT_EQ(Content(blob), "hello world");
  EXPECT_FALSE(store_->Find("other", blob)->complete);  // tenants share nothing
}

TEST_P(BlobStoreTest, EmptyBlob) {
  auto upload = store_->Begin("t", IdOf(""), 0);
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(store_->Find("t", IdOf(""))->complete);
}

TEST_P(BlobStoreTest, ResumesWhereItStopped) {
  const BlobId blob = IdOf("0123456789");
  ASSERT_TRUE((*store_->Begin("t", blob, 0))->Append("01234").ok());
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 5);
  const auto wrong = store_->Begin("t", blob, 3);
  EXPECT_TRUE(HasReason(wrong.status(), Reason::kUploadOffset));
  EXPECT_EQ(MetadataOf(wrong.status(), "committed"), "5");
  auto upload = store_->Begin("t", blob, 5);
  ASSERT_TRUE(upload.ok());
  EXPECT_TRUE((*upload)->Append("56789").ok());
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_EQ(Content(blob), "0123456789");
}

TEST_P(BlobStoreTest, OffsetZeroStartsOver) {
  const BlobId blob = IdOf("abc");
  ASSERT_TRUE((*store_->Begin("t", blob, 0))->Append("xx").ok());
  auto upload = store_->Begin("t", blob, 0);
  EXPECT_TRUE((*upload)->Append("abc").ok());
  EXPECT_TRUE((*upload)->Finish().ok());
}

TEST_P(BlobStoreTest, WrongContentIsDiscarded) {
  const BlobId blob = IdOf("abc");
  auto upload = store_->Begin("t", blob, 0);
  EXPECT_TRUE((*upload)->Append("abX").ok());
  const absl::Status status = (*upload)->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(HasReason(status, Reason::kBlobMismatch));
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 0);
  EXPECT_FALSE(store_->Find("t", blob)->complete);
}

// The second look at the digest is not one at what was appended: with the digest
// of nothing it would take another upload's empty file for the blob.
TEST_P(BlobStoreTest, AnUploadEndsOnce) {
  const BlobId blob{IdOf("").sha256, 1};
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append("x").ok());
  EXPECT_TRUE(HasReason((*upload)->Finish(), Reason::kBlobMismatch));
  auto another = store_->Begin("t", blob, 0);
  ASSERT_TRUE(another.ok()) << another.status();
  EXPECT_TRUE(HasReason((*upload)->Finish(), Reason::kInternal));
  EXPECT_TRUE(HasReason((*upload)->Append(""), Reason::kInternal));
  EXPECT_TRUE((*another)->Append("y").ok());
  EXPECT_TRUE(HasReason((*another)->Finish(), Reason::kBlobMismatch));
}

TEST_P(BlobStoreTest, TooMuchAndTooLittleAreRefused) {
  const BlobId blob = IdOf("abc");
  auto upload = store_->Begin("t", blob, 0);
  EXPECT_TRUE(HasReason((*upload)->Append("abcd"), Reason::kUploadOffset));
  EXPECT_TRUE((*upload)->Append("ab").ok());
  const absl::Status early = (*upload)->Finish();
  EXPECT_TRUE(HasReason(early, Reason::kUploadOffset));
  EXPECT_EQ(MetadataOf(early, "committed"), "2");
}

TEST_P(BlobStoreTest, OneUploadAtATime) {
  const BlobId blob = IdOf("abc");
  auto first = store_->Begin("t", blob, 0);
  ASSERT_TRUE(first.ok());
  const auto second = store_->Begin("t", blob, 0);
  EXPECT_TRUE(HasReason(second.status(), Reason::kResourceLimit));
  EXPECT_TRUE(RetryAfterOf(second.status()).has_value());
  first->reset();
  EXPECT_TRUE(store_->Begin("t", blob, 0).ok());
}

TEST_P(BlobStoreTest, HostileNamesAreRefused) {
  EXPECT_FALSE(store_->Find("../t", IdOf("a")).ok());
  EXPECT_FALSE(store_->Find("t", {.sha256 = "../../etc/passwd", .size_bytes = 1}).ok());
  EXPECT_FALSE(store_->Begin("t", {.sha256 = std::string(64, 'A'), .size_bytes = 1}, 0).ok());
  EXPECT_FALSE(store_->Begin("t", {.sha256 = std::string(64, 'a'), .size_bytes = -1}, 0).ok());
}

TEST_P(BlobStoreTest, StoredBytesCountWhatIsThereOfOneTenant) {
  EXPECT_EQ(*store_->StoredBytes("t"), 0);
  auto whole = store_->Begin("t", IdOf("hello"), 0);
  ASSERT_TRUE((*whole)->Append("hello").ok());
  ASSERT_TRUE((*whole)->Finish().ok());
  auto begun = store_->Begin("t", IdOf("hello world"), 0);
  ASSERT_TRUE((*begun)->Append("hel").ok());
  EXPECT_EQ(*store_->StoredBytes("t"), 8);
  EXPECT_EQ(*store_->StoredBytes("other"), 0);
  EXPECT_FALSE(store_->StoredBytes("../t").ok());
}

// RLIMIT_FSIZE makes write(2) fail part-way like a full disk does.
TEST_P(BlobStoreTest, AFailedWriteLeavesAResumableUpload) {
  const std::string text(6000, 'z');
  const BlobId blob = IdOf(text);
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append(text.substr(0, 1000)).ok());
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {3000, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_FALSE((*upload)->Append(text.substr(1000)).ok());
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  upload->reset();
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 1000);
  auto resumed = store_->Begin("t", blob, 1000);
  ASSERT_TRUE(resumed.ok());
  EXPECT_TRUE((*resumed)->Append(text.substr(1000)).ok());
  EXPECT_TRUE((*resumed)->Finish().ok());
}

TEST_P(BlobStoreTest, AnotherServerSeesWhatIsFinished) {
  const BlobId blob = IdOf("shared");
  const auto other = Open("spool of another");
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append("sha").ok());
  upload->reset();
  if (GetParam() == Store::kLocal) {
    EXPECT_EQ(other->Find("t", blob)->committed_bytes, 3);
  } else {  // it starts over there
    EXPECT_EQ(other->Find("t", blob)->committed_bytes, 0);
    EXPECT_EQ(MetadataOf(other->Begin("t", blob, 3).status(), "committed"), "0");
  }
  ASSERT_TRUE(Upload(*other, "shared").ok());
  EXPECT_TRUE(store_->Find("t", blob)->complete);
  EXPECT_EQ(Content(blob), "shared");
}

TEST_P(BlobStoreTest, WhatIsWholeIsFinishedWithoutMoreBytes) {
  const BlobId blob = IdOf("all of it");
  ASSERT_TRUE((*store_->Begin("t", blob, 0))->Append("all of it").ok());
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 9);
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  auto upload = store_->Begin("t", blob, 9);
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(store_->Find("t", blob)->complete);
}

TEST_P(BlobStoreTest, FindsManyAtOnce) {
  std::vector<BlobId> blobs;
  for (int i = 0; i < 40; ++i) blobs.push_back(IdOf("blob " + std::to_string(i)));
  for (const int i : {0, 17, 39}) ASSERT_TRUE(Upload(*store_, "blob " + std::to_string(i)).ok());
  const auto wanted = [] { return absl::OkStatus(); };
  const auto states = store_->FindAll("t", blobs, wanted);
  ASSERT_TRUE(states.ok()) << states.status();
  ASSERT_EQ(states->size(), blobs.size());
  for (size_t i = 0; i < blobs.size(); ++i) {
    EXPECT_EQ((*states)[i].complete, i == 0 || i == 17 || i == 39) << i;
  }
  EXPECT_TRUE(store_->FindAll("t", {}, wanted)->empty());
  const auto left = [] { return absl::CancelledError("nobody waits"); };
  EXPECT_TRUE(absl::IsCancelled(store_->FindAll("t", blobs, left).status()));
  blobs[20].sha256 = "no digest";
  EXPECT_FALSE(store_->FindAll("t", blobs, wanted).ok());
}

TEST_P(BlobStoreTest, PlacesBlobsForPrograms) {
  ASSERT_TRUE(Upload(*store_, "a text").ok());
  const bool local = GetParam() == Store::kLocal;
  for (const BlobPart part : {BlobPart::kWhole, BlobPart::kHead}) {
    const std::string path = root_ + "/placed";
    fs::remove(path);
    const auto placed = store_->Place("t", IdOf("a text"), part, 6, path);
    ASSERT_TRUE(placed.ok()) << placed.status();
    EXPECT_EQ(*placed, local ? 0 : 6) << "a link takes nothing";
    EXPECT_EQ(ReadFile(path), "a text");
  }
  const auto more = store_->Place("t", IdOf("a text"), BlobPart::kWhole, 5, root_ + "/more");
  EXPECT_EQ(HasReason(more.status(), Reason::kResourceLimit), !local) << more.status();
  for (const BlobPart part : {BlobPart::kWhole, BlobPart::kSize}) {
    EXPECT_TRUE(
        absl::IsNotFound(store_->Place("t", IdOf("none"), part, 6, root_ + "/none").status()));
  }
}

TEST_P(BlobStoreTest, PlacesTextsThatNobodyReads) {
  for (const std::string text : {"a text", ""}) {
    ASSERT_TRUE(Upload(*store_, text).ok());
    const std::string path = root_ + "/sized";
    fs::remove(path);
    const auto placed = store_->Place("t", IdOf(text), BlobPart::kSize, 0, path);
    ASSERT_TRUE(placed.ok()) << placed.status();
    EXPECT_EQ(ReadFile(path), GetParam() == Store::kLocal ? text : std::string(text.size(), '\0'));
  }
}

// What a quote reads of weights is their header.
TEST_P(BlobStoreTest, PlacesTheHeadOfFilesOfWeights) {
  const std::string header = "{\"a\":{}}";
  std::string text = std::string("\x08\0\0\0\0\0\0\0", 8) + header;
  text.resize(1000, 'w');
  ASSERT_TRUE(Upload(*store_, text).ok());
  const std::string path = root_ + "/head";
  const auto less = store_->Place("t", IdOf(text), BlobPart::kHead, 15, path);
  if (GetParam() == Store::kLocal) {
    fs::remove(path);
  } else {
    EXPECT_TRUE(HasReason(less.status(), Reason::kResourceLimit)) << less.status();
  }
  const auto placed = store_->Place("t", IdOf(text), BlobPart::kHead, 16, path);
  ASSERT_TRUE(placed.ok()) << placed.status();
  EXPECT_EQ(*placed, GetParam() == Store::kLocal ? 0 : 16);
  EXPECT_EQ(fs::file_size(path), text.size());
  const std::string read = ReadFile(path);
  EXPECT_EQ(read.substr(0, 16), text.substr(0, 16));
  EXPECT_EQ(read.back(), GetParam() == Store::kLocal ? 'w' : '\0');
}

// Root may write whatever a file's mode says; this test is an ordinary user for a while.
class OrdinaryUser {
 public:
  OrdinaryUser() : was_root_(geteuid() == 0), done_(!was_root_ || seteuid(kNobody) == 0) {}
  ~OrdinaryUser() {
    if (was_root_ && done_ && seteuid(0) != 0) std::abort();
  }
  bool ok() const { return done_; }

 private:
  static constexpr uid_t kNobody = 65534;
  const bool was_root_;
  const bool done_;
};

// Its server was killed when the file could not be written to any more and had no name yet.
TEST(LocalBlobStoreTest, AnUploadThatEndedWhileItWasFinishedGoesOn) {
  const OrdinaryUser user;
  if (!user.ok()) GTEST_SKIP() << "root here is no root";
  const std::string root = testing::TempDir() + "unfinished-blobs-" + std::to_string(getpid());
  const BlobId blob = IdOf("all of it");
  const fs::path partial = root + "/t/.partial/" + blob.sha256;
  const auto is = [&](const fs::path& path, unsigned mode) {
    return fs::status(path).permissions() == static_cast<fs::perms>(mode);
  };
  for (const std::int64_t offset : {blob.size_bytes, std::int64_t{0}}) {
    auto store = *OpenLocalBlobStore(root);
    auto killed = store->Begin("t", blob, 0);
    ASSERT_TRUE((*killed)->Append("all of it").ok());
    fs::permissions(partial, fs::perms(0440));
    EXPECT_TRUE(HasReason(store->Begin("t", blob, 0).status(), Reason::kResourceLimit));
    EXPECT_TRUE(is(partial, 0440)) << "it is being finished";
    killed->reset();

    store = *OpenLocalBlobStore(root);
    auto upload = store->Begin("t", blob, offset);
    ASSERT_TRUE(upload.ok()) << upload.status();
    if (offset == 0) {
      ASSERT_TRUE((*upload)->Append("all of it").ok());
    }
    EXPECT_TRUE((*upload)->Finish().ok());
    EXPECT_TRUE(store->Find("t", blob)->complete);
    EXPECT_TRUE(is(root + "/t/" + blob.sha256, 0440));
    fs::remove_all(root);
  }
}

// An object store over a folder, whose files' times a test can set.
class ObjectBlobStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(root_);
    fs::create_directories(root_ + "/spool");
    store_ = NewObjectBlobStore("file://" + root_ + "/objects",
                                *OpenStorage("file://" + root_ + "/objects"), root_ + "/spool");
    auto upload = store_->Begin("t", blob_, 0);
    ASSERT_TRUE((*upload)->Append("text").ok());
    ASSERT_TRUE((*upload)->Finish().ok());
  }
  void TearDown() override { fs::remove_all(root_); }
  void Age(const std::string& path) {
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(30));
  }

  const std::string root_ = testing::TempDir() + "object-blobs-" + std::to_string(getpid());
  const BlobId blob_ = IdOf("text");
  const std::string object_ = root_ + "/objects/t/" + blob_.sha256;
  const std::string marker_ = root_ + "/objects/t/.asked/" + blob_.sha256;
  std::unique_ptr<BlobStore> store_;
};

TEST_F(ObjectBlobStoreTest, AnOldBlobThatIsFoundIsMarkedAsNew) {
  EXPECT_TRUE(store_->Find("t", blob_)->complete);
  EXPECT_FALSE(fs::exists(marker_)) << "it is new itself";
  Age(object_);
  EXPECT_TRUE(store_->Find("t", blob_)->complete);
  EXPECT_TRUE(fs::exists(marker_));
  Age(marker_);
  EXPECT_TRUE(store_->Find("t", blob_)->complete);
  EXPECT_GT(fs::last_write_time(marker_), fs::file_time_type::clock::now() - std::chrono::hours(1));
  fs::remove(object_);
  EXPECT_FALSE(store_->Find("t", blob_)->complete);
}

TEST_F(ObjectBlobStoreTest, AFinishedUploadLeavesNothingBehind) {
  EXPECT_TRUE(fs::is_empty(root_ + "/spool/t/.partial"));
  EXPECT_EQ(*store_->StoredBytes("t"), 4);
}

TEST_F(ObjectBlobStoreTest, OneListingServesManyLooksUntilSomethingIsFinishedHere) {
  EXPECT_EQ(*store_->StoredBytes("t"), 4);
  std::ofstream(root_ + "/objects/t/" + IdOf("elsewhere").sha256) << "elsewhere";
  EXPECT_EQ(*store_->StoredBytes("t"), 4) << "listed a moment ago";
  EXPECT_EQ(*store_->StoredBytes("other"), 0);
  auto upload = store_->Begin("t", IdOf("more"), 0);
  ASSERT_TRUE((*upload)->Append("mo").ok());
  EXPECT_EQ(*store_->StoredBytes("t"), 6) << "what is in progress here is looked at each time";
  ASSERT_TRUE((*upload)->Append("re").ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  EXPECT_EQ(*store_->StoredBytes("t"), 17);
}

TEST_F(ObjectBlobStoreTest, WrongBytesInTheStoreAreNotHandedOn) {
  std::ofstream(object_) << "tent";
  const absl::Status status =
      store_->Place("t", blob_, BlobPart::kWhole, 100, root_ + "/placed").status();
  EXPECT_TRUE(HasReason(status, Reason::kArtifactCorrupt)) << status;
  EXPECT_FALSE(fs::exists(root_ + "/placed"));
}

// The bytes were right when they came and are not when they are read again.
TEST_F(ObjectBlobStoreTest, ADamagedSpoolIsNoBlob) {
  const BlobId blob = IdOf("words");
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append("words").ok());
  std::ofstream(root_ + "/spool/t/.partial/" + blob.sha256) << "swords";
  EXPECT_TRUE(HasReason((*upload)->Finish(), Reason::kBlobMismatch));
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 0);
}

TEST_F(ObjectBlobStoreTest, AStoreThatFailsKeepsTheUpload) {
  const BlobId blob = IdOf("words");
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append("words").ok());
  fs::create_directories(root_ + "/objects/t/" + blob.sha256 + "/in the way");
  const absl::Status failed = (*upload)->Finish();
  EXPECT_TRUE(HasReason(failed, Reason::kStorageError)) << failed;
  upload->reset();
  fs::remove_all(root_ + "/objects/t/" + blob.sha256);
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 5);
  upload = store_->Begin("t", blob, 5);
  ASSERT_TRUE(upload.ok());
  EXPECT_TRUE((*upload)->Finish().ok());
  EXPECT_TRUE(store_->Find("t", blob)->complete);
}

TEST_F(ObjectBlobStoreTest, AStoppedOneKeepsTheUpload) {
  const BlobId blob = IdOf("words");
  auto upload = store_->Begin("t", blob, 0);
  ASSERT_TRUE((*upload)->Append("words").ok());
  const absl::Status stopped =
      (*upload)->Finish([](std::int64_t) { return absl::CancelledError("the server ends"); });
  EXPECT_TRUE(absl::IsCancelled(stopped)) << stopped;
  upload->reset();
  EXPECT_FALSE(store_->Find("t", blob)->complete);
  EXPECT_EQ(store_->Find("t", blob)->committed_bytes, 5);
}

TEST(BlobRootTest, WrongRootsAreToldAtTheStart) {
  for (const char* root :
       {"", "/folder", "file://host/x", "http://x/y", "s3://key:secret@bucket/x",
        "s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1"}) {
    const auto store = OpenBlobStore(root, testing::TempDir() + "no-spool");
    EXPECT_TRUE(HasReason(store.status(), Reason::kInvalidConfig)) << root << store.status();
    EXPECT_NE(std::string(store.status().message()).find("blob_root"), std::string::npos) << root;
  }
}

}  // namespace
}  // namespace quantry::server
