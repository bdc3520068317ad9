// Sources of a model hub against tests/support/fake_hub.py.
#include "worker/agent/hub_source.h"

#include <poll.h>
#include <unistd.h>

#include <filesystem>

#include "common/digest.h"
#include "common/errors.h"
#include "common/line_reader.h"
#include "common/process.h"
#include "gtest/gtest.h"
#include "tests/support/files.h"
#include "worker/agent/materializer.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;
using test::ReadFile;
using test::WriteFile;

// A fake hub of the test's own, with one model.
class HubTest : public testing::Test {
 protected:
  HubTest() {
    char name[] = "/tmp/quantry-hub-XXXXXX";
    root_ = mkdtemp(name);
    for (std::size_t i = 0; i < weights_.size(); ++i)
      weights_[i] = static_cast<char>(i * 7 + i / 256);
    WriteFile(root_ / "hub/org/model/config.json", "{}");
    WriteFile(root_ / "hub/org/model/tokenizer.json", "{\"t\": 1}");
    WriteFile(root_ / "hub/org/model/model.safetensors", weights_);
    WriteFile(root_ / "hub/org/model/modeling.py", "import os");
    auto child = ChildProcess::Spawn({.argv = {"/usr/bin/python3", FAKE_HUB, root_ / "hub"},
                                      .environment = {},
                                      .capture_stderr = false});
    EXPECT_TRUE(child.ok()) << child.status();
    hub_.emplace(*std::move(child));
    LineReader lines(hub_->stdout_fd(), 1000);
    pollfd wait{.fd = hub_->stdout_fd(), .events = POLLIN, .revents = 0};
    while (options_.fetch.endpoint.empty() && poll(&wait, 1, 20'000) > 0) {
      lines.Drain([this](std::string_view line, bool) { options_.fetch.endpoint = line; });
    }
    options_.fetch.first_wait = std::chrono::milliseconds(1);
    options_.fetch.longest_wait = std::chrono::milliseconds(2);
  }
  ~HubTest() override { fs::remove_all(root_); }

  void Script(const std::string& json) { WriteFile(root_ / "hub/script.json", json); }
  std::string Requests() { return ReadFile(root_ / "hub/requests"); }

  // Runs a job's fetch; the folder it was put into.
  absl::StatusOr<JobInputs> Fetch(
      const std::string& uri, const std::string& attempt = "1",
      TransferCheck check = [](std::int64_t) { return absl::OkStatus(); }) {
    const HubSource hub(options_);
    BlobCache cache(root_ / "cache");
    v1::Lease lease;
    lease.mutable_spec()->mutable_model()->set_uri(uri);
    AttemptDir dir;
    dir.root = root_ / ("attempt-" + attempt);
    fs::create_directories(dir.root);
    return Materializer(cache, {}, &hub).Materialize(lease, dir, check);
  }
  fs::path Model(const std::string& attempt = "1") {
    AttemptDir dir;
    dir.root = root_ / ("attempt-" + attempt);
    return dir.model();
  }
  std::string Outcome(const std::string& uri) {
    const auto fetched = Fetch(uri);
    return fetched.ok() ? "OK" : ReasonOf(fetched.status());
  }

  fs::path root_;
  std::string weights_ = std::string(300'000, '\0');
  HubOptions options_;
  std::optional<ChildProcess> hub_;
};

TEST_F(HubTest, FetchesWhatQuantizationNeedsAtOneCommit) {
  const auto fetched = Fetch("hf://org/model");
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(ReadFile(Model() / "model.safetensors"), weights_);
  EXPECT_EQ(ReadFile(Model() / "tokenizer.json"), "{\"t\": 1}");
  EXPECT_TRUE(fs::exists(Model() / "config.json"));
  EXPECT_FALSE(fs::exists(Model() / "modeling.py"));
  ASSERT_EQ(fetched->note.rfind("hf://org/model is commit ", 0), 0u);
  const std::string commit = fetched->note.substr(fetched->note.size() - 40);
  EXPECT_TRUE(Fetch("hf://org/model@" + commit, "2").ok());
  EXPECT_EQ(ReadFile(Model("2") / "model.safetensors"), weights_);
  // The second time the weights came from the cache.
  std::string requests = Requests();
  const std::size_t first = requests.find("/cdn/");
  ASSERT_NE(first, std::string::npos) << requests;
  EXPECT_EQ(requests.find("/cdn/", first + 1), std::string::npos) << requests;
}

TEST_F(HubTest, ABrokenTransferGoesOnWhereItStopped) {
  Script(R"({"break_after": 100000, "breaks": 2})");
  ASSERT_EQ(Outcome("hf://org/model"), "OK");
  EXPECT_EQ(ReadFile(Model() / "model.safetensors"), weights_);
  EXPECT_NE(Requests().find("bytes=100000-"), std::string::npos) << Requests();
  EXPECT_NE(Requests().find("bytes=200000-"), std::string::npos) << Requests();
}

TEST_F(HubTest, AnInterruptedAttemptLeavesItsPartToTheNext) {
  std::int64_t moved = 0;
  const auto stopped = Fetch("hf://org/model", "1", [&](std::int64_t bytes) {
    moved += bytes;
    return moved > 150'000 ? absl::CancelledError("told to stop") : absl::OkStatus();
  });
  EXPECT_TRUE(absl::IsCancelled(stopped.status())) << stopped.status();
  ASSERT_TRUE(Fetch("hf://org/model", "2").ok());
  EXPECT_EQ(ReadFile(Model("2") / "model.safetensors"), weights_);
  EXPECT_NE(Requests().find("bytes="), std::string::npos) << Requests();
}

TEST_F(HubTest, AServerWithoutRangesStartsOver) {
  Script(R"({"break_after": 100000, "breaks": 1, "no_range": true})");
  ASSERT_EQ(Outcome("hf://org/model"), "OK");
  EXPECT_EQ(ReadFile(Model() / "model.safetensors"), weights_);
}

TEST_F(HubTest, BusyServersAreAskedAgain) {
  Script(R"({"status": [503, 429, 500]})");
  EXPECT_EQ(Outcome("hf://org/model"), "OK");
  options_.fetch.max_tries = 3;
  Script(R"({"status": [503, 503, 503, 503]})");
  EXPECT_EQ(Outcome("hf://org/model"), "STORAGE_ERROR");
}

TEST_F(HubTest, DamageIsFetchedOnceMore) {
  Script(R"({"damage": 1})");
  EXPECT_EQ(Outcome("hf://org/model"), "OK");
  EXPECT_EQ(ReadFile(Model() / "model.safetensors"), weights_);
  fs::remove_all(root_ / "cache");
  fs::remove_all(Model());
  Script(R"({"damage": 100})");
  EXPECT_EQ(Outcome("hf://org/model"), "ARTIFACT_CORRUPT");
}

TEST_F(HubTest, ATokenIsReadFromItsFile) {
  Script(R"({"token": "hf_secret"})");
  EXPECT_EQ(Outcome("hf://org/model"), "SOURCE_FORBIDDEN");
  WriteFile(root_ / "token", "hf_secret\n");
  options_.fetch.token_file = root_ / "token";
  EXPECT_EQ(Outcome("hf://org/model"), "OK");
  WriteFile(root_ / "token", "evil\rHeader: x");
  EXPECT_EQ(Outcome("hf://org/model"), "SOURCE_FORBIDDEN");
}

TEST_F(HubTest, RedirectsGoWhereTheListSaysAndNeverToPrivateAddresses) {
  const struct {
    const char* name;
    std::string location;
    std::vector<std::string> listed;
    const char* words;
  } cases[] = {
      {"not listed", "https://evil.example/x", {}, "hub_redirect_hosts"},
      {"no TLS", "http://cdn.example/x", {"cdn.example"}, "hub_redirect_hosts"},
      {"another port here", "https://127.0.0.1:1/x", {"127.0.0.1"}, "not public"},
      {"metadata", "https://169.254.169.254/x", {"169.254.169.254"}, "not public"},
      {"IPv6 loopback", "https://[::1]/x", {"[::1]"}, "not public"},
      {"a name of this machine", "https://localhost/x", {"localhost"}, "not public"},
      {"a user in the URL", "https://a:b@cdn.example/x", {"cdn.example"}, "hub_redirect_hosts"},
      {"a file", "file:///etc/passwd", {""}, "hub_redirect_hosts"},
  };
  for (const auto& c : cases) {
    Script("{\"redirect\": \"" + c.location + "\"}");
    options_.fetch.redirect_hosts = c.listed;
    const auto fetched = Fetch("hf://org/model");
    EXPECT_TRUE(HasReason(fetched.status(), Reason::kSourceForbidden))
        << c.name << fetched.status();
    EXPECT_NE(fetched.status().message().find(c.words), std::string::npos)
        << c.name << fetched.status();
  }
}

TEST_F(HubTest, WhatIsRefused) {
  EXPECT_EQ(Outcome("hf://org/none"), "SOURCE_MISSING");
  EXPECT_EQ(Outcome("hf://org/model@v9"), "SOURCE_MISSING");
  WriteFile(root_ / "hub/org/pickled/config.json", "{}");
  WriteFile(root_ / "hub/org/pickled/pytorch_model.bin", "pickle");
  const auto pickled = Fetch("hf://org/pickled");
  EXPECT_TRUE(HasReason(pickled.status(), Reason::kCheckpointFormatRefused)) << pickled.status();
  EXPECT_NE(pickled.status().message().find("safe_serialization"), std::string::npos);
  Script(R"({"siblings": [{"rfilename": "../../escape.json", "size": 1}]})");
  EXPECT_EQ(Outcome("hf://org/model"), "STORAGE_ERROR");
  Script(R"({"siblings": [{"rfilename": "notes.txt"}]})");
  const auto unsized = Fetch("hf://org/model");
  EXPECT_NE(unsized.status().message().find("without a size"), std::string::npos)
      << unsized.status();
  Script(R"({"siblings": [{"rfilename": "model.safetensors.index.json", "size": 70000000}]})");
  EXPECT_EQ(Outcome("hf://org/model"), "RESOURCE_LIMIT");
  EXPECT_EQ(Requests().find("index.json"), std::string::npos) << "refused before it is fetched";
  Script("{}");
  options_.max_bytes = 1000;
  EXPECT_EQ(Outcome("hf://org/model"), "RESOURCE_LIMIT");
  options_.fetch.endpoint.clear();
  EXPECT_EQ(Outcome("hf://org/model"), "SOURCE_FORBIDDEN");
}

TEST(HubFiles, ShardsAreThoseOfTheIndex) {
  HubListing listing{.repo = "org/name", .commit = "c", .files = {}};
  for (const char* path : {"config.json", "model-1.safetensors", "model-2.safetensors",
                           "consolidated.safetensors", "onnx/model.onnx", "run.py", "README.md"}) {
    listing.files.push_back({.path = path});
  }
  const auto names = [&](const std::string& index) {
    std::string text;
    const auto wanted = WantedHubFiles(listing, index);
    for (const HubFile& file : *wanted) text += file.path + " ";
    return text;
  };
  EXPECT_EQ(names(R"({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})"),
            "config.json model-1.safetensors model-2.safetensors README.md ");
  EXPECT_EQ(names(""),
            "config.json model-1.safetensors model-2.safetensors consolidated.safetensors "
            "README.md ");
  EXPECT_TRUE(
      HasReason(WantedHubFiles(listing, R"({"weight_map": {"a": "model-9.safetensors"}})").status(),
                Reason::kSourceMissing));
  listing.files.push_back({.path = "model.safetensors"});
  EXPECT_EQ(names(""), "config.json README.md model.safetensors ");
}

TEST(HubOptionsTest, WhatAnOperatorMaySay) {
  const struct {
    const char* endpoint;
    const char* token;
    bool ok;
  } cases[] = {{"", "", true},
               {"https://hub.example", "/token", true},
               {"http://127.0.0.1:80", "/token", true},
               {"http://mirror.example", "", true},
               {"http://mirror.example", "/token", false},
               {"ftp://hub.example", "", false},
               {"hub.example", "", false}};
  for (const auto& c : cases) {
    HubOptions options;
    options.fetch.endpoint = c.endpoint;
    options.fetch.token_file = c.token;
    EXPECT_EQ(HubSource::Check(options).ok(), c.ok) << c.endpoint;
  }
}

}  // namespace
}  // namespace quantry::agent
