#include "server/auth/principals_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "common/digest.h"
#include "google/protobuf/util/time_util.h"
#include "gtest/gtest.h"
#include "server/auth/token_command.h"

namespace quantry::server {
namespace {

using google::protobuf::util::TimeUtil;

std::string FreshFile() {
  const std::string path = ::testing::TempDir() + "principals-" + std::to_string(getpid()) + "-" +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::remove(path);
  return path;
}

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

v1::TokenConfig Wanted(const std::string& file) {
  v1::TokenConfig config;
  config.set_principals_file(file);
  config.set_principal("ci");
  config.set_role("submitter");
  config.set_tenant("acme");
  config.set_expires_in_days(90);
  return config;
}

TEST(PrincipalsFile, MadeTokensAreFound) {
  const std::string file = FreshFile();
  const Time now = FromUnixMicros(1'700'000'000'000'000);
  const auto token = CreateToken(Wanted(file), now);
  ASSERT_TRUE(token.ok()) << token.status();
  v1::TokenConfig worker = Wanted(file);
  worker.set_role("worker");
  worker.clear_tenant();
  worker.set_expires_in_days(0);
  const auto second = CreateToken(worker, now);
  ASSERT_TRUE(second.ok()) << second.status();

  const auto table = PrincipalTable::Load(file);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->size(), 2u);
  const Principal* found = table->FindToken(*token);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->name, "ci");
  EXPECT_EQ(found->role, Role::kSubmitter);
  EXPECT_EQ(found->tenant, "acme");
  EXPECT_EQ(found->expire_time, now + std::chrono::hours(24 * 90));
  EXPECT_EQ(table->FindToken(*second)->expire_time, std::nullopt);
  EXPECT_TRUE(table->FindToken(*second)->all_tenants());
  EXPECT_EQ(table->FindToken(Sha256Hex(*token)), nullptr) << "the hash is no token";
  EXPECT_EQ(ReadAll(file).find(*token), std::string::npos) << "the file holds the token";

  struct stat info {};
  ASSERT_EQ(stat(file.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(PrincipalsFile, TheModeOfTheFileStays) {
  const std::string file = FreshFile();
  std::ofstream(file) << "# ours";
  chmod(file.c_str(), 0640);
  ASSERT_TRUE(CreateToken(Wanted(file), Time()).ok());
  struct stat info {};
  ASSERT_EQ(stat(file.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
  EXPECT_EQ(ReadAll(file).rfind("# ours\n{", 0), 0u) << ReadAll(file);
}

TEST(PrincipalsFile, TokensDifferAndAreLong) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string token = NewToken();
    EXPECT_EQ(token.size(), 47u);
    EXPECT_EQ(token.rfind("qtk_", 0), 0u);
    EXPECT_EQ(token.find_first_of("=+/ "), std::string::npos);
    EXPECT_TRUE(seen.insert(token).second);
  }
}

TEST(PrincipalsFile, WrongLinesAreNamed) {
  const std::string hash = Sha256Hex("x");
  const std::string good =
      R"({"principal":"a","role":"viewer","tenant":"t","token_sha256":")" + hash + "\"}\n";
  struct Case {
    std::string line;
    const char* wanted;
  };
  const Case cases[] = {
      {"hello", "file:2: wanted one JSON object"},
      {R"({"principal":"a","token":"qtk_1"})", "file:2: wanted one JSON object"},
      {R"({"principal":"a","role":"viewer","tenant":"t"})", "exactly one of token_sha256"},
      {R"({"principal":"a","role":"viewer","tenant":"t","token_sha256":"abc"})", "64 lower-case"},
      {R"({"principal":"a","role":"boss","tenant":"t","certificate_uri":"u"})", "wanted role"},
      {R"({"principal":"a","role":"viewer","certificate_uri":"u"})", "wanted a tenant"},
      {good, "in an earlier line too"},
      {std::string(20000, ' ') + "{}", "wanted at most 16384 bytes"},
  };
  for (const Case& test : cases) {
    const auto table = PrincipalTable::Parse(good + test.line, "file");
    ASSERT_FALSE(table.ok()) << test.line;
    EXPECT_NE(table.status().message().find(test.wanted), std::string::npos) << table.status();
  }
  EXPECT_TRUE(PrincipalTable::Parse("\n# comment\n  \r\n" + good, "file").ok());
}

TEST(PrincipalsFile, AFileEverybodyMayWriteIsRefused) {
  const std::string file = FreshFile();
  std::ofstream(file) << "";
  chmod(file.c_str(), 0666);
  EXPECT_NE(PrincipalTable::Load(file).status().message().find("chmod o-w"), std::string::npos);
  EXPECT_FALSE(PrincipalTable::Load("/nonexistent/file").ok());
}

TEST(TokenCommand, WrongFlagsAreNamed) {
  struct Case {
    void (*damage)(v1::TokenConfig*);
    const char* wanted;
  };
  const Case cases[] = {
      {[](auto* c) { c->clear_principals_file(); }, "--principals-file: wanted a file"},
      {[](auto* c) { c->set_expires_in_days(-1); }, "--expires-in-days: wanted 0 to"},
      {[](auto* c) { c->set_role("root"); }, "wanted role viewer"},
      {[](auto* c) { c->clear_tenant(); }, "wanted a tenant"},
      {[](auto* c) { c->clear_principal(); }, "wanted a principal"},
      {[](auto* c) { c->set_principals_file("/nonexistent/folder/file"); }, "/nonexistent/folder"},
  };
  for (const Case& test : cases) {
    v1::TokenConfig config = Wanted(FreshFile());
    test.damage(&config);
    const auto token = CreateToken(config, Time());
    ASSERT_FALSE(token.ok()) << test.wanted;
    EXPECT_NE(token.status().message().find(test.wanted), std::string::npos) << token.status();
  }
}

}  // namespace
}  // namespace quantry::server
