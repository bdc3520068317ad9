#include "worker/agent/materializer.h"

#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>

#include "common/digest.h"
#include "common/errors.h"
#include "gtest/gtest.h"
#include "tests/support/files.h"
#include "worker/agent/failure.h"
#include "worker/agent/local_source.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;
using test::ReadFile;
using test::WriteFile;

class MaterializerTest : public testing::Test {
 protected:
  MaterializerTest() {
    char name[] = "/tmp/quantry-mat-XXXXXX";
    root_ = mkdtemp(name);
    WriteFile(root_ / "allowed/model/config.json", "{}");
    WriteFile(root_ / "allowed/model/model.safetensors", "w");
    WriteFile(root_ / "allowed/text.txt", "words");
    WriteFile(root_ / "secret/config.json", "{}");
    WriteFile(root_ / "secret/model.safetensors", "w");
    work_.emplace(*WorkDir::Open(root_ / "work"));
    cache_.emplace(work_->cache());
    dir_ = *work_->CreateAttempt("uid", 1);
  }
  ~MaterializerTest() override { fs::remove_all(root_); }

  v1::Lease Lease() {
    v1::Lease lease;
    lease.set_blob_uri("file://" + (root_ / "blobs").native());
    lease.add_local_roots((root_ / "allowed").native());
    return lease;
  }
  void AddBlob(v1::Lease& lease, const std::string& name, const std::string& bytes) {
    auto* file = lease.mutable_spec()->mutable_model()->mutable_blobs()->add_files();
    file->set_path(name);
    file->set_sha256(Sha256Hex(bytes));
    file->set_size_bytes(static_cast<std::int64_t>(bytes.size()));
    WriteFile(root_ / "blobs" / file->sha256(), bytes);
  }
  absl::StatusOr<JobInputs> Materialize(const v1::Lease& lease) {
    return Materializer(*cache_, {}).Materialize(lease, dir_, nullptr);
  }
  std::string ReasonFor(const v1::Lease& lease) {
    const auto inputs = Materialize(lease);
    return inputs.ok() ? "OK" : ToEngineError(inputs.status()).reason();
  }

  fs::path root_;
  std::optional<WorkDir> work_;
  std::optional<BlobCache> cache_;
  AttemptDir dir_;
};

TEST_F(MaterializerTest, LocalPaths) {
  fs::create_directory_symlink(root_ / "secret", root_ / "allowed/link-out");
  fs::create_directory_symlink("model", root_ / "allowed/link-in");
  fs::create_directory_symlink(root_ / "allowed", root_ / "alias");
  WriteFile(root_ / "allowed/leaky/config.json", "{}");
  fs::create_symlink(root_ / "secret/model.safetensors", root_ / "allowed/leaky/model.safetensors");
  WriteFile(root_ / "allowed/fifo/config.json", "{}");
  mkfifo((root_ / "allowed/fifo/model.safetensors").c_str(), 0600);
  WriteFile(root_ / "allowed/pickled/config.json", "{}");
  WriteFile(root_ / "allowed/pickled/pytorch_model.bin", "p");
  WriteFile(root_ / "allowed/bare/model.safetensors", "w");
  const struct {
    const char* path;
    const char* reason;
  } cases[] = {
      {"allowed/model", "OK"},
      {"allowed/model/", "OK"},
      {"allowed/link-in", "OK"},
      {"allowed/../allowed/model", "SOURCE_FORBIDDEN"},
      {"secret", "SOURCE_FORBIDDEN"},
      {"allowed/../secret", "SOURCE_FORBIDDEN"},
      {"allowed/link-out", "SOURCE_FORBIDDEN"},
      {"allowed/leaky", "SOURCE_FORBIDDEN"},
      {"allowed/fifo", "SOURCE_FORBIDDEN"},
      {"allowed/model-nearby", "SOURCE_MISSING"},
      {"allowed/text.txt", "SOURCE_MISSING"},
      {"allowed/pickled", "CHECKPOINT_FORMAT_REFUSED"},
      {"allowed/bare", "SOURCE_MISSING"},
  };
  for (const auto& c : cases) {
    auto lease = Lease();
    lease.mutable_spec()->mutable_model()->set_local_path(root_.native() + "/" + c.path);
    EXPECT_EQ(ReasonFor(lease), c.reason) << c.path;
    lease.mutable_spec()->mutable_model()->set_uri("file://" + root_.native() + "/" + c.path);
    EXPECT_EQ(ReasonFor(lease), c.reason) << "as URI: " << c.path;
  }
  auto lease = Lease();
  lease.mutable_spec()->mutable_model()->set_local_path("allowed/model");
  EXPECT_EQ(ReasonFor(lease), "SOURCE_FORBIDDEN") << "relative";
  lease.clear_local_roots();
  lease.mutable_spec()->mutable_model()->set_local_path((root_ / "allowed/model").native());
  EXPECT_EQ(ReasonFor(lease), "SOURCE_FORBIDDEN") << "no roots at all";
}

TEST_F(MaterializerTest, RootMayBeALinkItself) {
  fs::create_directory_symlink(root_ / "allowed", root_ / "alias");
  const std::vector<std::string> roots = {(root_ / "alias").native()};
  EXPECT_EQ(*ResolveBelowRoots((root_ / "alias/model").native(), roots),
            (root_ / "allowed/model").native());
  EXPECT_EQ(*ResolveBelowRoots((root_ / "allowed/model").native(), roots),
            (root_ / "allowed/model").native());
  EXPECT_EQ(*ResolveBelowRoots((root_ / "alias").native(), roots), (root_ / "allowed").native());
}

TEST_F(MaterializerTest, Uploads) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  AddBlob(lease, "pytorch_model.bin", "ignored beside safetensors");
  AddBlob(lease, "modeling.py", "ignored always");
  auto* text = lease.mutable_spec()->mutable_evaluation()->mutable_source()->mutable_blob();
  text->set_path("x");
  text->set_sha256(lease.spec().model().blobs().files(0).sha256());
  text->set_size_bytes(2);
  const auto inputs = Materialize(lease);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_EQ(ReadFile(fs::path(inputs->model_dir) / "model.safetensors"), "weights");
  EXPECT_FALSE(fs::exists(fs::path(inputs->model_dir) / "pytorch_model.bin"));
  EXPECT_FALSE(fs::exists(fs::path(inputs->model_dir) / "modeling.py"));
  EXPECT_EQ(ReadFile(inputs->evaluation), "{}");
  EXPECT_EQ(inputs->calibration, "");
}

// As when the store went away between two files and all is tried again.
TEST_F(MaterializerTest, AnotherTryFindsFilesOfTheFirst) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  const fs::path missing = root_ / "blobs" / lease.spec().model().blobs().files(1).sha256();
  fs::rename(missing, root_ / "away");
  EXPECT_EQ(ReasonFor(lease), "SOURCE_MISSING");
  fs::rename(root_ / "away", missing);
  const auto inputs = Materialize(lease);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_EQ(ReadFile(fs::path(inputs->model_dir) / "config.json"), "{}");
  EXPECT_EQ(ReadFile(fs::path(inputs->model_dir) / "model.safetensors"), "weights");
}

TEST_F(MaterializerTest, HostileUploads) {
  const struct {
    const char* name;
    std::vector<std::string> files;
    const char* reason;
  } cases[] = {
      {"parent", {"config.json", "model.safetensors", "../x.json"}, "INVALID_SPEC"},
      {"absolute", {"config.json", "model.safetensors", "/etc/x.json"}, "INVALID_SPEC"},
      {"backslash", {"config.json", "model.safetensors", "a\\b.json"}, "INVALID_SPEC"},
      {"empty name", {"config.json", "model.safetensors", ""}, "INVALID_SPEC"},
      {"twice", {"config.json", "model.safetensors", "config.json"}, "INVALID_SPEC"},
      {"pickle only", {"config.json", "model.pt"}, "CHECKPOINT_FORMAT_REFUSED"},
      {"no weights", {"config.json"}, "SOURCE_MISSING"},
      {"nothing", {}, "SOURCE_MISSING"},
  };
  for (const auto& c : cases) {
    auto lease = Lease();
    lease.mutable_spec()->mutable_model()->mutable_blobs();
    for (const std::string& file : c.files) AddBlob(lease, file, "{}");
    EXPECT_EQ(ReasonFor(lease), c.reason) << c.name;
  }
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "w");
  lease.mutable_spec()->mutable_model()->mutable_blobs()->mutable_files(1)->set_sha256("../../x");
  EXPECT_EQ(ReasonFor(lease), "INVALID_SPEC") << "sha256 that is a path";
}

TEST_F(MaterializerTest, DamagedCacheIsFetchedAgain) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  ASSERT_EQ(ReasonFor(lease), "OK");
  const std::string sha = lease.spec().model().blobs().files(1).sha256();
  const fs::path cached = fs::path(work_->cache()) / sha.substr(0, 2) / sha;
  ASSERT_TRUE(fs::exists(cached));
  fs::permissions(cached, fs::perms::owner_all);
  fs::remove(cached);
  WriteFile(cached, "damage!");
  dir_ = *work_->CreateAttempt("uid", 2);
  const auto inputs = Materialize(lease);
  ASSERT_TRUE(inputs.ok()) << inputs.status();
  EXPECT_EQ(ReadFile(fs::path(inputs->model_dir) / "model.safetensors"), "weights");
}

TEST_F(MaterializerTest, EvictionFreesTheLongestUnused) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  ASSERT_EQ(ReasonFor(lease), "OK");
  const auto left = [this] {
    int files = 0;
    for (const auto& entry : fs::recursive_directory_iterator(work_->cache())) {
      files += entry.is_regular_file();
    }
    return files;
  };
  cache_->Evict(1 << 20);
  EXPECT_EQ(left(), 2) << "a running job has them";
  fs::remove_all(dir_.model());
  cache_->Evict(1);
  EXPECT_EQ(left(), 1);
  cache_->Evict(1 << 20);
  EXPECT_EQ(left(), 0);
}

TEST_F(MaterializerTest, NoMoreIsKeptThanTheLimitWhenNoJobHasIt) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  ASSERT_EQ(ReasonFor(lease), "OK");
  const std::string config = Sha256Hex("{}"), weights = Sha256Hex("weights");
  const auto has = [&](const std::string& sha) {
    return fs::exists(fs::path(work_->cache()) / sha.substr(0, 2) / sha);
  };
  const auto aged = fs::path(work_->cache()) / config.substr(0, 2) / config;
  fs::last_write_time(aged, fs::last_write_time(aged) - std::chrono::hours(1));
  const fs::path part = fs::path(work_->cache()) / "hub-parts/half";
  fs::create_directories(part.parent_path());
  std::ofstream(part) << "of a file that is still to come";
  BlobCache limited(work_->cache(), {.spare_bytes = 0, .max_bytes = 7});
  limited.Trim();
  EXPECT_TRUE(has(config) && has(weights)) << "a running job has them";
  fs::remove_all(dir_.model());
  cache_->Trim();
  EXPECT_TRUE(has(config) && has(weights)) << "no limit";
  limited.Trim();
  EXPECT_FALSE(has(config)) << "the longest unused";
  EXPECT_TRUE(has(weights)) << "as large as the limit";
  EXPECT_TRUE(fs::exists(part)) << "a fetch goes on from it";
}

TEST_F(MaterializerTest, ACancelIsSeenWhileACachedBlobIsHashed) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  ASSERT_EQ(ReasonFor(lease), "OK");
  auto storage = OpenStorage("file://" + (root_ / "blobs").native());
  ASSERT_TRUE(storage.ok());
  const auto status = cache_->Place(**storage, Sha256Hex("{}"), 2, dir_.text() + "/calibration",
                                    [](std::int64_t) { return absl::CancelledError("stop"); });
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

// Space is needed while another slot fetches for hours.
TEST_F(MaterializerTest, EvictionWaitsForNoFetchAndLeavesItAlone) {
  auto lease = Lease();
  AddBlob(lease, "config.json", "{}");
  AddBlob(lease, "model.safetensors", "weights");
  ASSERT_EQ(ReasonFor(lease), "OK");
  fs::remove_all(dir_.model());
  const std::string bytes = "bytes that come slowly";
  const std::string sha = Sha256Hex(bytes);
  WriteFile(root_ / "blobs" / sha, bytes);
  auto storage = OpenStorage("file://" + (root_ / "blobs").native());
  ASSERT_TRUE(storage.ok());
  std::future<void> eviction;
  const auto status = cache_->Place(
      **storage, sha, static_cast<std::int64_t>(bytes.size()), dir_.text() + "/calibration",
      [&](std::int64_t) {
        eviction = std::async(std::launch::async, [&] { cache_->Evict(1 << 20); });
        EXPECT_EQ(eviction.wait_for(std::chrono::seconds(10)), std::future_status::ready);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(ReadFile(dir_.text() + "/calibration"), bytes);
  std::string left;
  for (const auto& entry : fs::recursive_directory_iterator(work_->cache())) {
    if (entry.is_regular_file()) left += entry.path().filename().native() + " ";
  }
  EXPECT_EQ(left, sha + " ");
}

TEST(ModelFileTest, Table) {
  const struct {
    const char* path;
    ModelFile kind;
  } cases[] = {
      {"model-00001-of-00002.safetensors", ModelFile::kWanted},
      {"tokenizer.json", ModelFile::kWanted},
      {"tokenizer.model", ModelFile::kWanted},
      {"chat_template.jinja", ModelFile::kWanted},
      {"pytorch_model.bin", ModelFile::kPickle},
      {"consolidated.00.pth", ModelFile::kPickle},
      {"modeling_llama.py", ModelFile::kIgnored},
      {"onnx/model.onnx", ModelFile::kIgnored},
      {"original/params.json", ModelFile::kIgnored},
  };
  for (const auto& c : cases) EXPECT_EQ(ClassifyModelFile(c.path), c.kind) << c.path;
}

}  // namespace
}  // namespace quantry::agent
