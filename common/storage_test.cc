#include "common/storage.h"

#include <arrow/buffer.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "common/ids.h"
#include "common/storage_arrow.h"
#include "common/storage_internal.h"
#include "gtest/gtest.h"
#include "tests/support/s3_test_server.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;

constexpr char kSha256OfHello[] =
    "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

enum class Store {
  kFile,
  kS3,     // a server of this test's own
  kNamed,  // the empty prefix QUANTRY_TEST_STORAGE_URI names
};

// What every storage must do.
class StorageTest : public ::testing::TestWithParam<Store> {
 protected:
  void SetUp() override {
    char name[] = "/tmp/quantry-storage-XXXXXX";
    scratch_ = mkdtemp(name);
    std::string uri = UriFromLocalPath((scratch_ / "the store").native());
    if (GetParam() != Store::kFile) {
      const auto root = ObjectRoot();
      if (absl::IsNotFound(root.status())) GTEST_SKIP() << root.status().message();
      ASSERT_TRUE(root.ok()) << root.status();
      uri = JoinUri(*root, scratch_.filename().native());
    }
    auto storage = OpenStorage(uri);
    ASSERT_TRUE(storage.ok()) << storage.status();
    storage_ = std::move(*storage);
  }
  void TearDown() override {
    if (storage_) {
      EXPECT_TRUE(storage_->DeleteTree("").ok());
    }
    fs::remove_all(scratch_);
  }
  absl::StatusOr<std::string> ObjectRoot() {
    if (GetParam() == Store::kS3) return S3TestBucket();
    const char* uri = std::getenv("QUANTRY_TEST_STORAGE_URI");
    if (uri == nullptr) return absl::NotFoundError("QUANTRY_TEST_STORAGE_URI is not set");
    return uri;
  }
  std::string LocalFile(const std::string& name, const std::string& bytes) {
    std::ofstream(scratch_ / name, std::ios::binary) << bytes;
    return (scratch_ / name).native();
  }

  fs::path scratch_;
  std::unique_ptr<Storage> storage_;
};

TEST_P(StorageTest, WriteReadStatDelete) {
  ASSERT_EQ(storage_->Write("a/b.txt", "hello"), absl::OkStatus());
  EXPECT_EQ(*storage_->Read("a/b.txt", 5), "hello");
  EXPECT_EQ((*storage_->Stat("a/b.txt"))->size_bytes, 5);
  const auto age = std::chrono::system_clock::now() - (*storage_->Stat("a/b.txt"))->modified;
  EXPECT_LT(std::chrono::abs(age), std::chrono::minutes(5));
  EXPECT_EQ(storage_->List("")->at(0).modified, (*storage_->Stat("a/b.txt"))->modified);
  EXPECT_FALSE((*storage_->Stat("a")).has_value());
  ASSERT_EQ(storage_->Write("a/b.txt", "bye"), absl::OkStatus());
  EXPECT_EQ(*storage_->Read("a/b.txt", 5), "bye");
  ASSERT_TRUE(storage_->Delete("a/b.txt").ok());
  EXPECT_TRUE(storage_->Delete("a/b.txt").ok()) << "deleting twice is fine";
  EXPECT_FALSE((*storage_->Stat("a/b.txt")).has_value());
}

TEST_P(StorageTest, ErrorsSayWhatIsWrong) {
  EXPECT_EQ(storage_->Read("missing", 10).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(storage_->Open("missing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(storage_->Download("missing", scratch_ / "x", nullptr).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(fs::exists(scratch_ / "x"));
  ASSERT_EQ(storage_->Write("big", "0123456789"), absl::OkStatus());
  EXPECT_EQ(storage_->Read("big", 9).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(storage_->Upload(scratch_ / "no file", "y", nullptr).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_P(StorageTest, HostilePathsAreRefused) {
  for (const std::string path :
       {"", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a\\b", "a/"}) {
    EXPECT_EQ(storage_->Write(path, "x").code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(storage_->Read(path, 1).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  EXPECT_FALSE(CheckRelativePath(std::string_view("a\0b", 3)).ok());
  EXPECT_TRUE(CheckRelativePath("..a/b..").ok());
}

TEST_P(StorageTest, TransfersHashAndCount) {
  const std::string local = LocalFile("in", "hello");
  std::int64_t counted = 0;
  const TransferCheck count = [&](std::int64_t bytes) {
    counted += bytes;
    return absl::OkStatus();
  };
  auto up = storage_->Upload(local, "deep/er/file", count);
  ASSERT_TRUE(up.ok()) << up.status();
  EXPECT_EQ(up->sha256, kSha256OfHello);
  EXPECT_EQ(up->size_bytes, 5);
  auto down = storage_->Download("deep/er/file", scratch_ / "out/file", count);
  ASSERT_TRUE(down.ok()) << down.status();
  EXPECT_EQ(down->sha256, kSha256OfHello);
  EXPECT_EQ(counted, 10);
  std::ifstream out(scratch_ / "out/file");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(out), {}), "hello");
}

TEST_P(StorageTest, StoppedTransferLeavesNothing) {
  const std::string local = LocalFile("in", std::string(3 << 20, 'x'));
  const TransferCheck stop = [](std::int64_t) { return absl::CancelledError("stop"); };
  EXPECT_EQ(storage_->Upload(local, "up", stop).status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE((*storage_->Stat("up")).has_value());
  EXPECT_TRUE(storage_->List("")->empty());
  ASSERT_TRUE(storage_->Upload(local, "up", nullptr).ok());
  EXPECT_EQ(storage_->Download("up", scratch_ / "down", stop).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_FALSE(fs::exists(scratch_ / "down"));
}

// A commit, a checkpoint and an upload that is made twice must not harm what is there.
TEST_P(StorageTest, StoppedTransferKeepsWhatWasThere) {
  ASSERT_EQ(storage_->Write("up", "old"), absl::OkStatus());
  const std::string local = LocalFile("in", std::string(3 << 20, 'x'));
  const TransferCheck stop = [&](std::int64_t) {
    EXPECT_EQ(*storage_->Read("up", 1 << 30), "old");
    EXPECT_EQ(storage_->List("")->size(), 1u);
    return absl::CancelledError("stop");
  };
  EXPECT_EQ(storage_->Upload(local, "up", stop).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(*storage_->Read("up", 1 << 30), "old");
  EXPECT_EQ(storage_->ListAll("")->size(), 1u) << "a temporary is left";
}

// As a process that is killed leaves it.
TEST(LocalStorageTest, OnlyListAllShowsAFileThatWasNotFinished) {
  const fs::path root = testing::TempDir() + "unfinished-" + std::to_string(getpid());
  fs::create_directories(root / "a");
  std::ofstream(root / "a/.tmp-7-0") << "hel";
  std::ofstream(root / "a/whole") << "hello";
  const auto storage = *OpenStorage(root.native());
  const auto all = storage->ListAll("");
  ASSERT_TRUE(all.ok() && all->size() == 2) << all.status();
  EXPECT_EQ(all->front().path, "a/.tmp-7-0");
  EXPECT_EQ(all->front().size_bytes, 3);
  ASSERT_EQ(storage->List("")->size(), 1u);
  EXPECT_EQ(storage->List("")->front().path, "a/whole");
  fs::remove_all(root);
}

TEST_P(StorageTest, ReadersSeeTheOldOrTheNew) {
  const std::string old(100, 'o');
  const std::string fresh(100, 'n');
  ASSERT_EQ(storage_->Write("f", old), absl::OkStatus());
  std::atomic<bool> done = false;
  std::jthread writer([&] {
    for (int i = 0; i < 10; ++i) {
      const absl::Status put = storage_->Write("f", i % 2 == 0 ? fresh : old);
      EXPECT_TRUE(put.ok()) << put;
    }
    done = true;
  });
  int seen = 0;
  while (!done || seen == 0) {
    const auto text = storage_->Read("f", 1000);
    // Opened before it was replaced, read after that.
    if (absl::IsUnavailable(text.status())) continue;
    ASSERT_TRUE(text.ok()) << text.status();
    ASSERT_TRUE(*text == old || *text == fresh) << text->size() << " bytes";
    ++seen;
  }
}

TEST_P(StorageTest, NothingIsLeftOfATree) {
  ASSERT_EQ(storage_->Write("a/b/c", "x"), absl::OkStatus());
  ASSERT_EQ(storage_->Write("a/b/d", "x"), absl::OkStatus());
  ASSERT_TRUE(storage_->Delete("a/b/c").ok());
  ASSERT_TRUE(storage_->DeleteTree("a").ok());
  EXPECT_TRUE(storage_->ListAll("")->empty());
  EXPECT_FALSE((*storage_->Stat("a/b/d")).has_value());
}

TEST_P(StorageTest, ListIsRecursiveAndSorted) {
  EXPECT_TRUE(storage_->List("")->empty());
  EXPECT_TRUE(storage_->List("nothing/here")->empty());
  for (const char* path : {"b", "a/2", "a/1", "c/d/e"})
    ASSERT_EQ(storage_->Write(path, "x"), absl::OkStatus());
  std::string names;
  const auto all = storage_->List("");
  ASSERT_TRUE(all.ok()) << all.status();
  for (const StoredFile& file : *all) names += file.path + " ";
  EXPECT_EQ(names, "a/1 a/2 b c/d/e ");
  EXPECT_EQ(storage_->List("a")->size(), 2u);
  const auto paths = [&](std::string_view folder) {
    std::string found;
    const auto files = storage_->ListFolder(folder);
    EXPECT_TRUE(files.ok()) << files.status();
    for (const StoredFile& file : *files) found += file.path + " ";
    return found;
  };
  EXPECT_EQ(paths(""), "b ");
  EXPECT_EQ(paths("a"), "a/1 a/2 ");
  EXPECT_EQ(paths("c"), "");
  EXPECT_EQ(paths("nothing/here"), "");
  ASSERT_TRUE(storage_->DeleteTree("a").ok());
  EXPECT_TRUE(storage_->DeleteTree("a").ok());
  EXPECT_EQ(storage_->List("")->size(), 2u);
}

TEST_P(StorageTest, RandomAccess) {
  ASSERT_EQ(storage_->Write("f", "0123456789"), absl::OkStatus());
  auto reader = storage_->Open("f");
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ((*reader)->size_bytes(), 10);
  EXPECT_EQ(*(*reader)->ReadAt(3, 4), "3456");
  EXPECT_EQ(*(*reader)->ReadAt(8, 100), "89");
  EXPECT_EQ(*(*reader)->ReadAt(10, 1), "");
  EXPECT_EQ(*(*reader)->ReadAt(11, 1), "");
  EXPECT_FALSE((*reader)->ReadAt(-1, 1).ok());
}

// Beyond one request of an object store: several parts, the last one short.
TEST_P(StorageTest, LargeFilesGoInParts) {
  std::string bytes;
  for (int i = 0; bytes.size() < (23u << 20) + 12345; ++i) bytes += std::to_string(i) + ",";
  const std::string local = LocalFile("in", bytes);
  auto up = storage_->Upload(local, "large", nullptr);
  ASSERT_TRUE(up.ok()) << up.status();
  EXPECT_EQ(up->size_bytes, static_cast<std::int64_t>(bytes.size()));
  auto down = storage_->Download("large", scratch_ / "out", nullptr);
  ASSERT_TRUE(down.ok()) << down.status();
  EXPECT_EQ(down->sha256, up->sha256);
  ASSERT_EQ(storage_->Write("whole", bytes), absl::OkStatus());
  EXPECT_TRUE(*storage_->Read("whole", 1 << 30) == bytes);
}

TEST(LocalStorageTest, TemporariesOfACrashAreInNobodysWay) {
  char name[] = "/tmp/quantry-storage-XXXXXX";
  const fs::path root = mkdtemp(name);
  for (int i = 0; i < 5000; ++i) {  // more than this process has made so far
    std::ofstream(root / (".tmp-" + std::to_string(getpid()) + "-" + std::to_string(i)));
  }
  auto storage = OpenStorage(UriFromLocalPath(root.native()));
  ASSERT_TRUE(storage.ok()) << storage.status();
  EXPECT_TRUE((*storage)->Write("object", "hello").ok());
  EXPECT_EQ(*(*storage)->Read("object", 5), "hello");
  EXPECT_EQ((*storage)->List("")->size(), 1u);
  fs::remove_all(root);
}

// A folder that goes while a list is made takes nothing else out of it.
TEST(LocalStorageTest, AListMissesNothingThatStays) {
  constexpr int kFolders = 400;
  char name[] = "/tmp/quantry-storage-XXXXXX";
  const fs::path root = mkdtemp(name);
  const auto storage = OpenStorage(UriFromLocalPath(root.native()));
  ASSERT_TRUE(storage.ok()) << storage.status();
  for (int i = 0; i < kFolders; ++i) {
    for (const char* kind : {"stays-", "goes-"}) {
      const fs::path folder = root / (kind + std::to_string(i)) / "x";
      fs::create_directories(folder);
      std::ofstream(folder / "f") << "x";
    }
  }
  const std::jthread remover([&] {
    for (int i = 0; i < kFolders; ++i) fs::remove_all(root / ("goes-" + std::to_string(i)));
  });
  for (bool left = true; left;) {
    left = fs::exists(root / ("goes-" + std::to_string(kFolders - 1)));
    const auto files = (*storage)->List("");
    ASSERT_TRUE(files.ok()) << files.status();
    EXPECT_EQ(std::count_if(files->begin(), files->end(),
                            [](const StoredFile& file) { return file.path.starts_with("stays"); }),
              kFolders);
  }
  fs::remove_all(root);
}

INSTANTIATE_TEST_SUITE_P(Stores, StorageTest,
                         ::testing::Values(Store::kFile, Store::kS3, Store::kNamed),
                         [](const auto& store) {
                           switch (store.param) {
                             case Store::kFile:
                               return "file";
                             case Store::kS3:
                               return "s3";
                             case Store::kNamed:
                               return "named";
                           }
                           return "";
                         });

TEST(StorageUriTest, JoinKeepsTheOptions) {
  EXPECT_EQ(JoinUri("s3://b/p?region=x&y=/z", "a/b"), "s3://b/p/a/b?region=x&y=/z");
  EXPECT_EQ(JoinUri("s3://b/?region=x", "a"), "s3://b/a?region=x");
  EXPECT_EQ(JoinUri("file:///a/", "b"), "file:///a/b");
}

TEST(StorageUriTest, Table) {
  const struct {
    const char* uri;
    const char* path;  // nullptr = refused
  } cases[] = {
      {"file:///a/b", "/a/b"},      {"/a/b", "/a/b"},           {"file:///a%20b/", "/a b"},
      {"file://localhost/a", "/a"}, {"file://host/a", nullptr}, {"file:///a%zz", nullptr},
      {"file:///a%00b", nullptr},   {"a/b", nullptr},           {"s3://a/b", nullptr},
  };
  for (const auto& c : cases) {
    const auto path = LocalPathFromUri(c.uri);
    ASSERT_EQ(path.ok(), c.path != nullptr) << c.uri;
    if (c.path != nullptr) {
      EXPECT_EQ(*path, c.path) << c.uri;
    }
  }
  EXPECT_EQ(*LocalPathFromUri(UriFromLocalPath("/a b/%/ü")), "/a b/%/ü");
  for (const char* uri : {"", "relative/path", "http://x/y", "ftp://x"}) {
    EXPECT_EQ(OpenStorage(uri).status().code(), absl::StatusCode::kInvalidArgument) << uri;
  }
}

TEST(StorageErrorTest, NamesOfObjectsSayNothing) {
  const std::string path = "models/404-403-NotFound/AccessDenied";
  const auto s3 = [&](const std::string& code) {
    return "When reading '403.bin' in bucket '" + path + "': AWS Error " + code +
           " during GetObject operation: NO_SUCH luck with 404";
  };
  const std::pair<std::string, absl::StatusCode> cases[] = {
      {s3("INTERNAL_FAILURE"), absl::StatusCode::kUnavailable},
      {s3("SLOW_DOWN"), absl::StatusCode::kUnavailable},
      {s3("UNKNOWN (HTTP status 500)"), absl::StatusCode::kUnavailable},
      {s3("UNKNOWN (HTTP status 404)"), absl::StatusCode::kNotFound},
      {s3("UNKNOWN (HTTP status 403)"), absl::StatusCode::kPermissionDenied},
      {s3("NO_SUCH_BUCKET"), absl::StatusCode::kNotFound},
      {s3("ACCESS_DENIED"), absl::StatusCode::kPermissionDenied},
      {s3("INVALID_ACCESS_KEY_ID"), absl::StatusCode::kPermissionDenied},
      {"Got the following 1 errors when deleting objects in S3 bucket 'b':\n- key '" + path +
           "/f': Access Denied\n",
       absl::StatusCode::kPermissionDenied},
      {"Got the following 1 errors when deleting objects in S3 bucket 'b':\n- key '" + path +
           "/f': We encountered an internal error. Please try again.\n",
       absl::StatusCode::kUnavailable},
      {"UploadFrom failed for 'http://host/" + path +
           "'. Azure Error: [AuthenticationFailed] 403 Server failed to authenticate.",
       absl::StatusCode::kPermissionDenied},
      {"GetProperties failed. Azure Error: [] 404 The specified container does not exist.",
       absl::StatusCode::kNotFound},
      {"Failed. Azure Error: [ServerBusy] 503 Egress is over the account limit; 404 403",
       absl::StatusCode::kUnavailable},
      {"Failed. Azure Error: [] Fail to get a new connection for: http://host/404/NotFound",
       absl::StatusCode::kUnavailable},
      {"google::cloud::Status(UNAUTHENTICATED: cannot sign)", absl::StatusCode::kPermissionDenied},
      {"google::cloud::Status(UNAVAILABLE: Retry policy exhausted, NOT_FOUND before)",
       absl::StatusCode::kUnavailable},
      {"cannot reach " + path, absl::StatusCode::kUnavailable},
      {path + ": the container does not exist", absl::StatusCode::kNotFound},
      {"PERMISSION_DENIED for " + path, absl::StatusCode::kPermissionDenied},
  };
  for (const auto& [text, code] : cases) {
    EXPECT_EQ(storage_internal::CodeOfFailure(text, path), code) << text;
  }
}

TEST(StorageErrorTest, SignaturesAreNotTold) {
  const auto status = storage_internal::FromArrow(
      arrow::Status::IOError(
          "GetProperties of 'https://a/c/o?sv=1&sig=abc%2Bd&se=2' failed.\nId: 7"),
      "look up", "c/o");
  EXPECT_EQ(status.message(),
            "look up c/o: GetProperties of 'https://a/c/o?sv=1&sig=...&se=2' failed. Id: 7");
}

// What Arrow makes of a body that is too short: `sent` bytes of an object, told as the whole.
class ShortBodies : public arrow::io::RandomAccessFile {
 public:
  ShortBodies(std::string object, std::vector<std::int64_t> sent)
      : object_(std::move(object)), sent_(std::move(sent)) {}

  arrow::Result<std::int64_t> ReadAt(std::int64_t offset, std::int64_t length, void* out) override {
    const auto sent = sent_[std::min(reads_++, sent_.size() - 1)];
    std::copy_n(object_.begin() + offset, std::min(length, sent), static_cast<char*>(out));
    return length;
  }
  arrow::Result<std::int64_t> GetSize() override { return object_.size(); }
  arrow::Result<std::int64_t> Tell() const override { return arrow::Status::NotImplemented(""); }
  arrow::Result<std::int64_t> Read(std::int64_t, void*) override { return Tell(); }
  arrow::Result<std::shared_ptr<arrow::Buffer>> Read(std::int64_t) override {
    return Tell().status();
  }
  arrow::Status Seek(std::int64_t) override { return Tell().status(); }
  arrow::Status Close() override { return arrow::Status::OK(); }
  bool closed() const override { return false; }
  std::size_t reads() const { return reads_; }

 private:
  const std::string object_;
  const std::vector<std::int64_t> sent_;  // by each read; the last: by all later ones, too
  std::size_t reads_ = 0;
};

TEST(StorageReaderTest, BodiesThatAreTooShortAreNotTaken) {
  const struct {
    std::string object;
    std::vector<std::int64_t> sent;
    bool whole;
    std::size_t reads;
  } cases[] = {
      {"0123456789", {10}, true, 1},    {"0123456789", {9, 10}, true, 2},
      {"0123456789", {0, 10}, true, 2}, {"0123456789", {9}, false, 2},
      {"0123456789", {0}, false, 2},    {"012345678[", {10}, true, 2},  // ends like a mark
      {"012345678\xa4", {10}, true, 1},
  };
  for (const auto& c : cases) {
    const auto file = std::make_shared<ShortBodies>(c.object, c.sent);
    const auto reader = storage_internal::NewArrowReader(file, 10, "bucket/f");
    const auto read = reader->ReadAt(0, 10);
    EXPECT_EQ(file->reads(), c.reads) << c.object;
    if (c.whole) {
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(*read, c.object);
    } else {
      EXPECT_EQ(read.status().code(), absl::StatusCode::kUnavailable) << read.status();
      EXPECT_NE(read.status().message().find("bucket/f"), std::string::npos) << read.status();
    }
  }
}

TEST(StorageUriTest, WhatErrorsNameIt) {
  const std::pair<const char*, const char*> cases[] = {
      {"s3://bucket/a/b?region=x", "bucket/a/b"},
      {"gs://anonymous@bucket/a/", "bucket/a"},
      {"abfs://box@account.dfs.core.windows.net/a", "box/a"},
      {"abfs://account.blob.core.windows.net/box/a", "box/a"},
      {"abfs://account@127.0.0.1:10000/box/a?enable_tls=false", "box/a"},
      {"abfs://account@box/a", "box/a"},
      {"no-uri", ""},
  };
  for (const auto& [uri, path] : cases) EXPECT_EQ(ObjectPathOf(uri), path) << uri;
}

TEST(StorageUriTest, Temporaries) {
  const std::string folder = "a/.tmp-" + NewUuid4();
  EXPECT_EQ(TemporaryOf(folder + "/name"), folder);
  EXPECT_EQ(TemporaryOf(folder.substr(2) + "/name"), folder.substr(2));
  for (const std::string file : {".tmp-7-0", "a/.tmp-123-45"}) EXPECT_EQ(TemporaryOf(file), file);
  for (const std::string& path :
       {folder, "x" + folder.substr(2) + "/name", folder + "x/name", std::string(".tmp-mine/name"),
        std::string(".tmp-7-0/name"), std::string("a/.tmp-7"), std::string("a/.tmp-7-"),
        std::string("a/.tmp-7-0-0"), std::string("a/x.tmp-7-0"), std::string()}) {
    EXPECT_EQ(TemporaryOf(path), "") << path;
  }
}

// A tenant's job may name any host. No request is made here.
TEST(StorageUriTest, TokensGoToTheCloudsOwnHostsAlone) {
  for (const char* name : {"AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"})
    unsetenv(name);
  const std::pair<const char*, bool> cases[] = {
      {"gs://bucket/a", true},
      {"gs://bucket/a?endpoint_override=restricted.googleapis.com", true},
      {"gs://bucket/a?endpoint_override=elsewhere", false},
      {"gs://bucket/a?endpoint_override=elsewhere/.googleapis.com", false},
      {"gs://bucket/a?endpoint_override=elsewhere%23.googleapis.com", false},
      {"gs://bucket/a?scheme=http", false},
      {"gs://anonymous@bucket/a?scheme=http&endpoint_override=elsewhere", true},
      {"gs://someone@bucket/a", false},
      {"abfs://box@account.dfs.core.windows.net/a", true},
      {"abfs://account.blob.core.windows.net/box/a", true},
      {"abfs://account@box/a", true},
      {"abfs://box/a", false},  // whose?
      {"abfs://account@elsewhere:443/box/a", false},
      {"abfs://account@box/a?enable_tls=false", false},
      {"abfs://account@box/a?blob_storage_authority=.elsewhere", false},
      {"abfs://account@box/a?dfs_storage_authority=elsewhere/.core.windows.net", false},
      {"abfs://elsewhere%2F@box/a", false},
      {"abfs://account@elsewhere:443/box/a?credential_kind=anonymous", true},
      {"abfs://account@elsewhere:443/box/a?sv=1&sig=a", true},
      {"abfs://account@elsewhere:443/box/a?sv=1&sig=a&credential_kind=environment", false},
      {"abfs://account@elsewhere:443/box/a?credential%5Fkind=environment&sig=a&credential_kind="
       "workload_identity",
       false},
      {"abfs://account@elsewhere:443/box/a?client_id=7", false},
  };
  for (const auto& [uri, opens] : cases) {
    const auto storage = OpenStorage(uri);
    EXPECT_EQ(storage.ok(), opens) << uri << " " << storage.status();
    if (!storage.ok()) {
      EXPECT_EQ(storage.status().code(), absl::StatusCode::kInvalidArgument) << uri;
    }
  }
}

TEST(StorageUriTest, AzureKeysOfTheEnvironmentAreOfOneAccount) {
  const std::string own = "abfs://account@elsewhere:443/box/a";
  const std::string others = "abfs://other@elsewhere:443/box/a";
  setenv("AZURE_STORAGE_ACCOUNT", "account", 1);
  setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=a", 1);
  EXPECT_FALSE(OpenStorage(own).ok()) << "the SAS would be sent there";
  EXPECT_TRUE(OpenStorage("abfs://account@box/a").ok());
  setenv("AZURE_STORAGE_KEY", "a2V5", 1);
  EXPECT_TRUE(OpenStorage(own).ok());
  EXPECT_FALSE(OpenStorage(others).ok());
  unsetenv("AZURE_STORAGE_ACCOUNT");
  EXPECT_NE(OpenStorage(own).status().message().find("AZURE_STORAGE_ACCOUNT"), std::string::npos);
  for (const char* name : {"AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"}) unsetenv(name);
}

TEST(StorageUriTest, S3LibraryLoads) {
  // No request is made: only the scheme's library and its registration.
  setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
  const auto storage =
      OpenStorage("s3://key:secret@bucket/prefix?scheme=http&endpoint_override=127.0.0.1:1");
  EXPECT_TRUE(storage.ok()) << storage.status();
}

}  // namespace
}  // namespace quantry

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const int result = RUN_ALL_TESTS();
  quantry::FinalizeStorage();
  return result;
}
