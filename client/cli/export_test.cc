// quantry export: the layout as the OCI image specification and CNCF ModelPack
// have it, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "client/cli/oci_layout.h"
#include "client/cli/pull_folder.h"
#include "client/cli/testing/fake_server.h"
#include "client/cli/testing/run.h"
#include "common/digest.h"

namespace quantry::cli {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

class ExportTest : public testing::Test {
 protected:
  ExportTest() {
    server.Publish(kJob, {{"compressed-tensors/model.safetensors", std::string(3'000'000, 'w')},
                          {"compressed-tensors/config.json", "{\"a\": 1}"},
                          {"compressed-tensors/README.md", "# model"},
                          {"compressed-tensors/sub/tokenizer.json", "{}"},
                          {"dense/model.safetensors", "dense"},
                          {"report/blocks.json", "[]"}});
  }

  CliRun Export(const std::string& source, const std::vector<std::string>& more = {}) {
    std::vector<std::string> all = {"export",   source,           "--oci-layout", folder / "oci",
                                    "--server", server.address(), "--output",     "json"};
    all.insert(all.end(), more.begin(), more.end());
    return RunForTest(all);
  }
  std::string Pulled() {
    const std::string out = folder / "pulled";
    EXPECT_EQ(RunForTest({"pull", "my-job", out, "--server", server.address()}).code, 0);
    return out;
  }
  json Read(const std::string& name) { return json::parse(folder.Read("oci/" + name)); }
  // The bytes of a descriptor's blob, which must be what it says.
  std::string Blob(const json& descriptor) {
    const std::string digest = descriptor.at("digest");
    EXPECT_EQ(digest.substr(0, 7), "sha256:");
    const std::string bytes = folder.Read("oci/blobs/sha256/" + digest.substr(7));
    EXPECT_EQ("sha256:" + Sha256Hex(bytes), digest);
    EXPECT_EQ(static_cast<int64_t>(bytes.size()), descriptor.at("size").get<int64_t>());
    EXPECT_FALSE(descriptor.at("mediaType").get<std::string>().empty());
    return bytes;
  }
  // What lies in the test's folder, sorted.
  std::vector<std::string> Entries() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string IndexText() { return folder.Read("oci/index.json"); }

  FakeServer server;
  TempFolder folder;
};

TEST_F(ExportTest, WritesWhatTheSpecificationsAskFor) {
  const CliRun run = Export("my-job", {"--tag", "v1"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(Read("oci-layout"), json({{"imageLayoutVersion", "1.0.0"}}));
  const json index = Read("index.json");
  EXPECT_EQ(index.at("schemaVersion"), 2);
  EXPECT_EQ(index.at("mediaType"), "application/vnd.oci.image.index.v1+json");
  ASSERT_EQ(index.at("manifests").size(), 1u);
  const json& entry = index.at("manifests").at(0);
  EXPECT_EQ(entry.at("mediaType"), "application/vnd.oci.image.manifest.v1+json");
  EXPECT_EQ(entry.at("artifactType"), "application/vnd.cncf.model.manifest.v1+json");
  EXPECT_EQ(entry.at("annotations").at("org.opencontainers.image.ref.name"), "v1");
  EXPECT_EQ(run.json()["manifest_digest"], entry.at("digest"));

  const json manifest = json::parse(Blob(entry));
  EXPECT_EQ(manifest.at("schemaVersion"), 2);
  EXPECT_EQ(manifest.at("mediaType"), entry.at("mediaType"));
  EXPECT_EQ(manifest.at("artifactType"), entry.at("artifactType"));
  const json& config_descriptor = manifest.at("config");
  EXPECT_EQ(config_descriptor.at("mediaType"), "application/vnd.cncf.model.config.v1+json");
  const json config = json::parse(Blob(config_descriptor));
  EXPECT_EQ(config.at("descriptor").at("name"), "my-job");
  EXPECT_EQ(config.at("config").at("format"), "safetensors");
  EXPECT_EQ(config.at("modelfs").at("type"), "layers");

  std::vector<std::pair<std::string, std::string>> layers;
  size_t i = 0;
  for (const json& layer : manifest.at("layers")) {
    const std::string bytes = Blob(layer);
    const std::string path = layer.at("annotations").at("org.cncf.model.filepath");
    layers.emplace_back(path, layer.at("mediaType"));
    const std::string file =
        path == "quantry-manifest.json" ? "manifest.json" : "compressed-tensors/" + path;
    EXPECT_EQ(bytes, server.files.at(file)) << path;
    EXPECT_EQ(config.at("modelfs").at("diffIds").at(i++), layer.at("digest"));
  }
  const std::string weight = "application/vnd.cncf.model.weight.v1.raw";
  const std::string weight_config = "application/vnd.cncf.model.weight.config.v1.raw";
  const std::string doc = "application/vnd.cncf.model.doc.v1.raw";
  EXPECT_THAT(layers, ElementsAre(std::pair(std::string("README.md"), doc),
                                  std::pair(std::string("config.json"), weight_config),
                                  std::pair(std::string("model.safetensors"), weight),
                                  std::pair(std::string("quantry-manifest.json"), doc),
                                  std::pair(std::string("sub/tokenizer.json"), weight_config)));
  EXPECT_THAT(Entries(), ElementsAre("oci"));
}

TEST_F(ExportTest, WhatIsSomebodyElsesStays) {
  folder.Write("oci.pull/notes.txt", "mine");
  ASSERT_EQ(Export("my-job").code, 0);
  EXPECT_EQ(folder.Read("oci.pull/notes.txt"), "mine");
  EXPECT_THAT(Entries(), ElementsAre("oci", "oci.pull"));
}

TEST_F(ExportTest, NothingIsPulledForALayoutThatIsNone) {
  folder.Write("oci/something", "x");
  EXPECT_EQ(Export("my-job").code, 2);
  EXPECT_THAT(Entries(), ElementsAre("oci"));
}

TEST_F(ExportTest, TheSameArtifactGivesTheSameBytes) {
  ASSERT_EQ(Export("my-job").code, 0);
  const std::string first = IndexText();
  std::filesystem::remove_all(folder / "oci");
  const CliRun run = Export(Pulled());
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(IndexText(), first);
  ASSERT_EQ(Export(Pulled()).code, 0) << "again";
  EXPECT_EQ(IndexText(), first);
}

TEST_F(ExportTest, ALayoutHoldsSeveralTags) {
  const std::string pulled = Pulled();
  ASSERT_EQ(Export(pulled, {"--tag", "w4"}).code, 0);
  ASSERT_EQ(Export(pulled, {"--tag", "dense", "--format", "dense"}).code, 0);
  ASSERT_EQ(Export(pulled, {"--tag", "w4"}).code, 0);
  const json index = Read("index.json");
  ASSERT_EQ(index.at("manifests").size(), 2u);
  std::set<std::string> digests;
  for (const json& entry : index.at("manifests")) digests.insert(entry.at("digest"));
  EXPECT_EQ(digests.size(), 2u);
  EXPECT_EQ(VerifyOciLayout(folder / "oci", "dense")->layers.size(), 2u);
}

TEST_F(ExportTest, TwoExportsAtOnceKeepBothTags) {
  const std::string pulled = Pulled();
  ASSERT_EQ(Export(pulled, {"--tag", "first"}).code, 0);
  const std::string blobs = folder / "oci/blobs/sha256";
  const auto count = [&blobs] {
    using Iterator = std::filesystem::directory_iterator;
    return std::distance(Iterator(blobs), Iterator());
  };
  const auto before = count();
  auto held = PullFolder::Hold(folder / "oci");
  ASSERT_TRUE(held.ok());
  std::atomic<bool> ended = false;
  CliRun run;
  std::thread other([&] {
    run = Export(pulled, {"--tag", "dense", "--format", "dense"});
    ended = true;
  });
  // Its weights, its config and its manifest are there: only the index is left.
  while (!ended && count() < before + 3) std::this_thread::yield();
  json row = {{"digest", "sha256:0"},
              {"annotations", {{"org.opencontainers.image.ref.name", "w4"}}}};
  folder.Write("oci/index.json", json({{"schemaVersion", 2}, {"manifests", {row}}}).dump());
  held = PullFolder();
  other.join();
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(IndexText(), HasSubstr("\"w4\""));
  EXPECT_THAT(IndexText(), HasSubstr("\"dense\""));
}

TEST_F(ExportTest, DamageIsSeen) {
  const std::string pulled = Pulled();
  ASSERT_EQ(Export(pulled).code, 0);
  const auto image = VerifyOciLayout(folder / "oci", "latest");
  ASSERT_TRUE(image.ok()) << image.status();
  folder.Write("oci/blobs/sha256/" + image->layers[2].sha256, "damaged");
  EXPECT_TRUE(absl::IsDataLoss(VerifyOciLayout(folder / "oci", "latest").status()));
  ASSERT_EQ(Export(pulled).code, 0) << "an export mends it";
  EXPECT_TRUE(VerifyOciLayout(folder / "oci", "latest").ok());
  EXPECT_TRUE(absl::IsDataLoss(VerifyOciLayout(folder / "oci", "other").status()));
  folder.Write("pulled/compressed-tensors/config.json", "{\"a\": 2}");
  std::filesystem::remove_all(folder / "oci");
  const CliRun run = Export(pulled);
  EXPECT_EQ(run.code, 1);
  EXPECT_EQ(run.json()["error"]["reason"], "ARTIFACT_CORRUPT");
  EXPECT_THAT(run.err, HasSubstr("config.json"));
}

TEST_F(ExportTest, WhatIsRefused) {
  const std::string pulled = Pulled();
  EXPECT_EQ(Export(pulled, {"--tag", "-x"}).code, 2);
  EXPECT_EQ(Export(pulled, {"--format", "awq"}).code, 2);
  EXPECT_EQ(Export("no-such-job").code, 4);
  folder.Write("empty/file", "x");
  CliRun run = Export(folder / "empty");
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("quantry pull"));
  for (const std::string& source : {pulled + "/" + std::string(300, 'x'), std::string(5000, 'x')}) {
    run = Export(source);
    EXPECT_EQ(run.code, 2);
    EXPECT_THAT(run.err, HasSubstr("File name too long"));
  }
  run = RunForTest({"export", pulled, "--oci-layout", folder / std::string(300, 'x')});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("File name too long"));
  folder.Write("oci/something", "x");
  run = Export(pulled);
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("no OCI image layout"));
}

}  // namespace
}  // namespace quantry::cli
