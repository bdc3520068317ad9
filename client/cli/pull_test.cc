#include "client/cli/pull.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <thread>

#include "client/cli/testing/fake_server.h"
#include "client/cli/testing/run.h"
#include "common/digest.h"

namespace quantry::cli {
namespace {

using testing::AnyOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

constexpr char kWeights[] = "compressed-tensors/model.safetensors";

class PullTest : public testing::Test {
 protected:
  PullTest() : weights(12'345, '\0') {
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<char>(i * 7 + i / 256);
    server.Publish(kJob, {{kWeights, weights},
                          {"compressed-tensors/config.json", "{}"},
                          {"dense/model.safetensors", "dense"},
                          {"empty", ""}});
  }

  CliRun Pull(const std::vector<std::string>& more = {}) {
    std::vector<std::string> all = {"pull", "my-job", folder / "out", "--server", server.address()};
    all.insert(all.end(), more.begin(), more.end());
    return RunForTest(all);
  }
  // What the pull's folder holds, sorted.
  std::vector<std::string> FilesThere() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / "out")) {
      if (!entry.is_regular_file()) continue;
      names.push_back(std::filesystem::relative(entry.path(), folder / "out"));
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string PartName() const {
    return "out/" + std::string(kWeights) + "." + Sha256Hex(weights).substr(0, 16) + ".part";
  }

  FakeServer server;
  TempFolder folder;
  std::string weights;
};

TEST_F(PullTest, FetchesEverythingAndAgainOnlyVerifies) {
  CliRun run = Pull({"--output", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
  EXPECT_EQ(folder.Read("out/manifest.json"), server.files["manifest.json"]);
  EXPECT_TRUE(std::filesystem::exists(folder / "out/empty"));
  EXPECT_EQ(run.json()["downloaded_files"], 4);
  server.reads.clear();
  run = Pull();
  EXPECT_EQ(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("verified 4 files"));
  EXPECT_EQ(server.reads.size(), 1u);  // the manifest
}

TEST_F(PullTest, AFolderThatCannotBeLookedAtIsAnError) {
  const std::string nowhere = folder / std::string(300, 'x');
  const CliRun run = RunForTest({"pull", "my-job", nowhere, "--server", server.address()});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("xxx/manifest.json\": File name too long"));
}

TEST_F(PullTest, ABrokenStreamGoesOnAtItsOffset) {
  server.read_faults = {{FakeServer::ReadFault::kBreak, 0},
                        {FakeServer::ReadFault::kBreak, 0},
                        {FakeServer::ReadFault::kBreak, 5000}};
  const CliRun run = Pull({"--path", kWeights});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(server.reads, Contains(Pair(kWeights, 5000)));
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
}

// "Stream removed" and RST_STREAM come so, without a reason of the server's.
TEST_F(PullTest, ATornConnectionGoesOnAtItsOffset) {
  server.read_faults = {{FakeServer::ReadFault::kBreak, 5000, grpc::UNKNOWN},
                        {FakeServer::ReadFault::kBreak, 9000, grpc::INTERNAL}};
  const CliRun run = Pull({"--path", kWeights});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(server.reads, Contains(Pair(kWeights, 5000)));
  EXPECT_THAT(server.reads, Contains(Pair(kWeights, 9000)));
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
}

TEST_F(PullTest, AServerThatComesBackIsWaitedForWithTheManifestToo) {
  server.manifest_breaks = 5;
  const CliRun run = Pull();
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_GT(run.slept, std::chrono::seconds(1));
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
}

TEST_F(PullTest, AnInterruptedPullResumes) {
  folder.Write(PartName(), weights.substr(0, 9000));
  ASSERT_EQ(Pull().code, 0);
  EXPECT_THAT(server.reads, Contains(Pair(kWeights, 9000)));
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
  EXPECT_FALSE(std::filesystem::exists(folder / PartName()));
}

TEST_F(PullTest, ADamagedRemainderIsFetchedWhole) {
  folder.Write(PartName(), std::string(9000, 'x'));
  ASSERT_EQ(Pull().code, 0);
  EXPECT_THAT(server.reads, Contains(Pair(kWeights, 0)));
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
}

TEST_F(PullTest, OneCorruptTransferIsRetriedTwoAreDataLoss) {
  const struct {
    const char* name;
    std::vector<FakeServer::ReadFault> faults;
    int code;
  } kCases[] = {
      {"crc once", {{FakeServer::ReadFault::kBadCrc, 3000}}, 0},
      {"content once", {{FakeServer::ReadFault::kBadContent, 3000}}, 0},
      {"crc twice", {{FakeServer::ReadFault::kBadCrc, 0}, {FakeServer::ReadFault::kBadCrc, 0}}, 1},
      {"content for ever", {{FakeServer::ReadFault::kStayCorrupt, 3000}}, 1},
  };
  for (const auto& c : kCases) {
    std::filesystem::remove_all(folder / "out");
    server.read_faults = c.faults;
    const CliRun run = Pull({"--path", kWeights, "--output", "json"});
    EXPECT_EQ(run.code, c.code) << c.name << run.err;
    EXPECT_EQ(std::filesystem::exists(folder / (std::string("out/") + kWeights)), c.code == 0);
    EXPECT_EQ(std::filesystem::exists(folder / "out/manifest.json"), c.code == 0) << c.name;
    if (c.code == 0) continue;
    EXPECT_EQ(run.json()["error"]["reason"], "ARTIFACT_CORRUPT") << c.name;
    EXPECT_EQ(run.json()["error"]["code"], "DATA_LOSS");
  }
}

TEST_F(PullTest, AForgedManifestIsRefused) {
  server.files["manifest.json"] += " ";
  const CliRun run = Pull();
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.err, HasSubstr("manifest.json"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out/manifest.json"));
}

TEST_F(PullTest, NamesThatLeaveTheFolderWriteNothing) {
  for (const char* name : {"../evil", "/etc/evil", "a/../../evil", "a//b", "a\\b", "manifest.json",
                           "line\nbreak", ".."}) {
    std::filesystem::remove_all(folder / "out");
    server.Publish(kJob, {{"good", "1"}, {name, "2"}});
    const CliRun run = Pull();
    EXPECT_EQ(run.code, 1) << name;
    EXPECT_THAT(run.err, HasSubstr("ARTIFACT_CORRUPT")) << name;
    EXPECT_FALSE(std::filesystem::exists(folder / "out/good")) << name;
    EXPECT_FALSE(std::filesystem::exists(folder / "evil")) << name;
  }
}

TEST_F(PullTest, FilesOfTheUsersOwnAreNotOverwritten) {
  folder.Write("out/empty", "precious");
  CliRun run = Pull();
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("--force"));
  EXPECT_EQ(folder.Read("out/empty"), "precious");
  EXPECT_EQ(Pull({"--force"}).code, 0);
  EXPECT_EQ(folder.Read("out/empty"), "");
}

TEST_F(PullTest, ASecondPullIntoTheFolderIsRefusedWhileTheFirstIsAtWork) {
  std::vector<CliRun> seconds;
  server.on_read = [&](const std::string& path) {
    if (path != kWeights || !seconds.empty()) return;
    seconds.emplace_back();  // its reads come here too
    seconds.back() = Pull();
    seconds.push_back(Pull({"--force"}));
  };
  const CliRun first = Pull();
  EXPECT_EQ(first.code, 0) << first.err;
  ASSERT_EQ(seconds.size(), 2u);
  for (const CliRun& second : seconds) {
    EXPECT_EQ(second.code, 2) << second.err;
    EXPECT_THAT(second.err, HasSubstr("another pull into \"" + (folder / "out") + "\" is at work"));
    EXPECT_THAT(second.err, HasSubstr("run the same pull again"));
  }
  EXPECT_THAT(FilesThere(), ElementsAre("compressed-tensors/config.json", kWeights,
                                        "dense/model.safetensors", "empty", "manifest.json"));
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
  EXPECT_EQ(Pull().code, 0);
}

TEST_F(PullTest, PullsAtTheSameTimeLeaveOneWholeArtifact) {
  std::vector<std::thread> threads;
  std::array<int, 6> codes{};
  for (int& code : codes) threads.emplace_back([&] { code = Pull().code; });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(codes, Each(AnyOf(0, 2)));
  EXPECT_THAT(codes, Contains(0));
  EXPECT_EQ(FilesThere().size(), 5u);
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
}

TEST_F(PullTest, APartFileHasOneWriter) {
  const std::string target = folder / "weights";
  {
    auto first = PartFile::Open(target, Sha256Hex("both"));
    ASSERT_TRUE(first.ok() && first->Append("both").ok());
    const auto second = PartFile::Open(target, Sha256Hex("both"));
    ASSERT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(second.status().message()), HasSubstr("another command is writing"));
    ASSERT_TRUE(first->Commit().ok());
    EXPECT_TRUE(PartFile::Open(target, Sha256Hex("both")).ok());  // of the next pull
  }
  EXPECT_EQ(folder.Read("weights"), "both");
}

TEST_F(PullTest, AForcedPullThatFailsLeavesTheOldFiles) {
  server.Publish(
      kJob, {{kWeights, "old weights"}, {"old/edited", "1"}, {"old/shard", "2"}, {"same", "s"}});
  ASSERT_EQ(Pull().code, 0);
  folder.Write("out/old/edited", "mine");
  folder.Write("out/notes.txt", "mine");
  folder.Write("out/" + std::string(kWeights) + ".0123456789abcdef.part", "of a pull long ago");
  const std::string old_manifest = folder.Read("out/manifest.json");
  server.Publish(kJob, {{"another", "new"}, {kWeights, weights}, {"empty", ""}, {"same", "s"}});
  server.read_faults = {{FakeServer::ReadFault::kStayCorrupt, 3000}};
  EXPECT_EQ(Pull().code, 2);  // not without --force
  EXPECT_EQ(Pull({"--force"}).code, 1);
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), "old weights");
  EXPECT_EQ(folder.Read("out/manifest.json"), old_manifest);
  EXPECT_FALSE(std::filesystem::exists(folder / "out/another"));

  server.read_faults.clear();
  const CliRun run = Pull({"--force"});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
  EXPECT_THAT(FilesThere(), ElementsAre("another", kWeights, "empty", "manifest.json", "notes.txt",
                                        "old/edited", "same"));
}

TEST_F(PullTest, APullEndsWhatAForcedOneBegan) {
  server.Publish(kJob, {{"old/edited", "1"}, {"old/shard", "2"}, {"same", "s"}});
  ASSERT_EQ(Pull().code, 0);
  folder.Write("out/old/edited", "mine");
  std::filesystem::rename(folder / "out/manifest.json", folder / "out/manifest.json.former");
  server.Publish(kJob, {{"another", "new"}, {"same", "s"}});
  const CliRun run = Pull();
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(FilesThere(), ElementsAre("another", "manifest.json", "old/edited", "same"));
}

TEST_F(PullTest, AFolderInTheWayStopsAForcedPullBeforeItChangesAnything) {
  server.Publish(kJob, {{"a", "old"}});
  ASSERT_EQ(Pull().code, 0);
  folder.Write("out/b/mine", "1");
  server.Publish(kJob, {{"a", "new"}, {"b", "2"}});
  const CliRun run = Pull({"--force"});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("out/b\" is a folder"));
  EXPECT_EQ(folder.Read("out/a"), "old");
  EXPECT_TRUE(std::filesystem::exists(folder / "out/manifest.json"));
}

TEST_F(PullTest, ADamagedFileOfACompleteFolderIsRepaired) {
  ASSERT_EQ(Pull().code, 0);
  folder.Write(std::string("out/") + kWeights, "scratched");
  const CliRun run = Pull();
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(folder.Read(std::string("out/") + kWeights), weights);
}

TEST_F(PullTest, OneFormatOrOnePath) {
  ASSERT_EQ(Pull({"--format", "dense"}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(folder / "out/dense/model.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out/compressed-tensors"));
  const CliRun missing = Pull({"--format", "quantry"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("compressed-tensors, dense"));
  EXPECT_EQ(Pull({"--path", "compressed-tensors/config.json"}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(folder / "out/compressed-tensors/config.json"));
  EXPECT_EQ(Pull({"--path", "nothing"}).code, 2);
}

TEST_F(PullTest, WhatWasPulledIsListedAndNothingElse) {
  const std::string out = folder / "out";
  const auto outputs = [this](const std::vector<std::string>& flags) {
    std::vector<std::string> all = flags;
    all.insert(all.end(), {"--output", "json"});
    std::vector<std::string> formats;
    const nlohmann::json json = Pull(all).json();
    for (const auto& output : json["outputs"]) {
      formats.push_back(output["format"].get<std::string>());
    }
    return formats;
  };
  EXPECT_EQ(Pull({"--path", kWeights}).out, out + "/" + kWeights + "\n");
  EXPECT_EQ(Pull({"--path", kWeights, "--output", "json"}).json()["path"], kWeights);
  EXPECT_THAT(outputs({"--path", kWeights}), testing::IsEmpty());
  EXPECT_THAT(outputs({"--path", "dense"}), ElementsAre("dense"));
  EXPECT_EQ(Pull({"--format", "dense"}).out, "dense  " + out + "/dense\n");
  EXPECT_THAT(outputs({"--format", "dense"}), ElementsAre("dense"));
  EXPECT_THAT(outputs({}), ElementsAre("compressed-tensors", "dense"));
}

TEST_F(PullTest, AJobWithoutArtifactSaysWhatToDo) {
  v1::QuantizationJob& job = server.jobs["tenants/default/quantizationJobs/young"];
  job.set_name("tenants/default/quantizationJobs/young");
  job.set_state(v1::JOB_STATE_RUNNING);
  const CliRun run = RunForTest({"pull", "young", folder / "out", "--server", server.address()});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("quantry watch young"));
}

TEST_F(PullTest, AnArtifactByUidOrName) {
  for (const std::string& name :
       {server.artifact.name(), std::string("0a1b2c3d-1111-4222-8333-444455556666")}) {
    EXPECT_EQ(RunForTest({"pull", name, folder / "out", "--server", server.address()}).code, 0);
  }
}

}  // namespace
}  // namespace quantry::cli
