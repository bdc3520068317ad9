#include "server/auth/tenant_sources.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;

TEST(IsBelow, PrefixesEndAtAPart) {
  const struct {
    const char* prefix;
    const char* uri;
    bool below;
  } cases[] = {
      {"s3://models/acme", "s3://models/acme", true},
      {"s3://models/acme", "s3://models/acme/", true},
      {"s3://models/acme", "s3://models/acme/llama/1", true},
      {"s3://models/acme/", "s3://models/acme/llama", true},
      {"s3://models/acme/", "s3://models/acme", true},
      {"s3://models/acme", "s3://models/acme-secret", false},
      {"s3://models/acme", "s3://models/acme@secret", false},
      {"s3://models/acme", "s3://models", false},
      {"s3://models/acme", "gs://models/acme", false},
      {"s3://models", "s3://models/x", true},
      {"s3://models", "s3://models2/x", false},
      {"s3://models", "s3://key:secret@models/x", false},
      {"s3://", "s3://any/thing", true},
      {"s3://", "gs://any/thing", false},
      {"s3://models/acme", "s3://models/acme/../other", false},
      {"s3://models/acme", "s3://models/acme/./x", false},
      {"s3://models/acme", "s3://models/acme//x", false},
      {"s3://models/acme", "s3://models/acme/%2e%2e/other", false},
      {"s3://models/acme", "s3://models/acme/x#y", false},
      {"s3://models/acme", "s3://models/acme/a\\b", false},
      {"s3://models/acme", "s3://models/acme/x?endpoint_override=evil", false},
      {"s3://models/acme?region=eu", "s3://models/acme/x?region=eu", true},
      {"s3://models/acme?region=eu", "s3://models/acme/x?region=us", false},
      {"s3://models/acme?region=eu", "s3://models/acme/x", false},
      {"hf://org", "hf://org/name@main", true},
      {"hf://org/name", "hf://org/name", true},
      {"hf://org/name", "hf://org/name@0123", true},
      {"hf://org/name", "hf://org/name2", false},
      {"hf://org/name@0123", "hf://org/name", false},
      {"hf://", "hf://name", true},
      {"abfs://box@account/a", "abfs://box@account/a/b", true},
      {"s3://models", "file:///models", false},
      {"s3://models", "", false},
  };
  for (const auto& c : cases)
    EXPECT_EQ(IsBelow(c.prefix, c.uri), c.below) << c.prefix << " " << c.uri;
}

class TenantSourcesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "tenant-sources-" + std::to_string(getpid());
    fs::remove_all(root_);
    for (const char* folder : {"/models/acme/llama", "/models/other", "/elsewhere"}) {
      fs::create_directories(root_ + folder);
    }
  }
  void TearDown() override { fs::remove_all(root_); }

  absl::StatusOr<TenantSources> Open(const std::string& lines) {
    std::ofstream(root_ + "/file") << lines;
    return TenantSources::Open({root_ + "/models"}, root_ + "/file");
  }
  bool Resolves(const TenantSources& sources, const std::string& tenant, const std::string& path) {
    return sources.RootsOf(tenant).Resolve(root_ + path).ok();
  }

  std::string root_;
};

TEST_F(TenantSourcesTest, WithoutAFileEverybodyMayReadAll) {
  const auto sources = TenantSources::Open({root_ + "/models"}, "");
  ASSERT_TRUE(sources.ok()) << sources.status();
  EXPECT_TRUE(sources->MayRead("acme", "s3://any/thing?endpoint_override=x"));
  EXPECT_TRUE(Resolves(*sources, "acme", "/models/other"));
  EXPECT_FALSE(Resolves(*sources, "acme", "/elsewhere"));
}

TEST_F(TenantSourcesTest, ALineATenantAndOneForTheRest) {
  fs::create_symlink(root_ + "/models/other", root_ + "/models/acme/link");
  const auto sources = Open(
      "# who reads what\n"
      R"({"tenant":"acme","uri_prefixes":["s3://m/acme"],"local_roots":[")" +
      root_ + "/models/acme/\"]}\n\n" + R"({"tenant":"*","uri_prefixes":["s3://m/public"]})" +
      "\n" + R"({"tenant":"none"})" + "\n");
  ASSERT_TRUE(sources.ok()) << sources.status();
  EXPECT_TRUE(sources->MayRead("acme", "s3://m/acme/x"));
  EXPECT_FALSE(sources->MayRead("acme", "s3://m/public/x"));
  EXPECT_TRUE(sources->MayRead("other", "s3://m/public/x"));
  EXPECT_FALSE(sources->MayRead("none", "s3://m/public/x"));
  EXPECT_EQ(sources->PrefixesOf("acme"), "s3://m/acme");
  EXPECT_EQ(sources->PrefixesOf("none"), "none");
  EXPECT_TRUE(Resolves(*sources, "acme", "/models/acme/llama"));
  EXPECT_FALSE(Resolves(*sources, "acme", "/models/other"));
  EXPECT_FALSE(Resolves(*sources, "acme", "/models/acme/link")) << "a link out of its own folder";
  EXPECT_FALSE(Resolves(*sources, "other", "/models/other"));
}

TEST_F(TenantSourcesTest, AnEmptyFileAllowsNothing) {
  const auto sources = Open("");
  ASSERT_TRUE(sources.ok()) << sources.status();
  EXPECT_FALSE(sources->MayRead("acme", "s3://m/x"));
  EXPECT_FALSE(Resolves(*sources, "acme", "/models/acme"));
}

TEST_F(TenantSourcesTest, WrongLinesAreNamed) {
  const std::string outside = R"({"tenant":"a","local_roots":[")" + root_ + "/elsewhere\"]}";
  const std::string climbs =
      R"({"tenant":"a","local_roots":[")" + root_ + "/models/../elsewhere\"]}";
  const std::string missing = R"({"tenant":"a","local_roots":[")" + root_ + "/models/no\"]}";
  const struct {
    std::string line;
    const char* words;
  } cases[] = {
      {"hello", "file:1: wanted one JSON object with tenant"},
      {R"({"tenant":"a","prefixes":[]})", "file:1: wanted one JSON object"},
      {R"({"tenant":"No Tenant"})", "file:1: "},
      {"{\"tenant\":\"a\"}\n{\"tenant\":\"a\"}", "file:2: tenant: wanted one line a tenant"},
      {R"({"tenant":"a","uri_prefixes":["file:///m"]})", "go into local_roots"},
      {R"({"tenant":"a","uri_prefixes":["s3://m/../x"]})", "uri_prefixes: wanted"},
      {R"({"tenant":"a","uri_prefixes":[""]})", "uri_prefixes: wanted"},
      {outside, "local_roots: wanted folders below --local-roots"},
      {climbs, "local_roots: wanted folders below --local-roots"},
      {missing, "wanted a readable folder"},
  };
  for (const auto& c : cases) {
    const absl::Status status = Open(c.line).status();
    EXPECT_TRUE(HasReason(status, Reason::kInvalidConfig)) << c.line;
    EXPECT_NE(std::string(status.message()).find(c.words), std::string::npos) << status;
  }
  EXPECT_TRUE(HasReason(TenantSources::Open({}, root_ + "/no").status(), Reason::kInvalidConfig));
  Open("").IgnoreError();
  chmod((root_ + "/file").c_str(), 0666);
  EXPECT_NE(std::string(Open("").status().message()).find("everybody may write"),
            std::string::npos);
}

}  // namespace
}  // namespace quantry::server
