#include "server/jobs/postgres/conninfo.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "common/errors.h"

namespace quantry::server::postgres {
namespace {

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string WriteFile(const std::string& content, mode_t mode) {
  const std::string path = ::testing::TempDir() + "quantry-password";
  std::ofstream(path) << content;
  chmod(path.c_str(), mode);
  return path;
}

TEST(ConninfoTest, TakesLibpqsUris) {
  const auto conninfo = MakeConninfo(
      "postgresql://me@db.example:6432/jobs?sslmode=verify-full&connect_timeout=2", "");
  ASSERT_TRUE(conninfo.ok()) << conninfo.status();
  for (const char* part : {"user='me'", "host='db.example'", "port='6432'", "dbname='jobs'",
                           "sslmode='verify-full'", "connect_timeout='2'"}) {
    EXPECT_TRUE(Has(*conninfo, part)) << part << " in " << *conninfo;
  }
  EXPECT_EQ(Describe(*conninfo), "PostgreSQL db.example:6432/jobs");
}

TEST(ConninfoTest, ThePasswordComesFromAFile) {
  const std::string path = WriteFile("it's \\ secret\nsecond line\n", 0600);
  const auto conninfo = MakeConninfo("postgres://me@db/jobs", path);
  ASSERT_TRUE(conninfo.ok()) << conninfo.status();
  EXPECT_TRUE(Has(*conninfo, "password='it\\'s \\\\ secret'")) << *conninfo;
  EXPECT_FALSE(Has(Describe(*conninfo), "secret"));
}

TEST(ConninfoTest, WrongOnesAreRefusedAndNameTheirFlag) {
  const struct {
    std::string uri, file, wanted;
  } cases[] = {
      {"mysql://me@db/jobs", "", "--job-store: wanted postgresql://"},
      {"", "", "--job-store: wanted postgresql://"},
      {"postgresql://me@db:port/jobs?nope=1", "", "nope"},
      {"postgresql://me:secret@db/jobs", "", "--job-store: the URI holds a password"},
      {"postgresql://me@db/jobs?password=secret", "", "the URI holds a password"},
      {"postgresql://me@db/jobs", "/nonexistent", "--job-store-password-file: /nonexistent"},
      {"postgresql://me@db/jobs", WriteFile("x\n", 0644), "others cannot read"},
  };
  for (const auto& test : cases) {
    const absl::Status status = MakeConninfo(test.uri, test.file).status();
    EXPECT_TRUE(HasReason(status, Reason::kInvalidConfig)) << test.uri << ": " << status;
    EXPECT_TRUE(Has(std::string(status.message()), test.wanted)) << status;
    EXPECT_FALSE(Has(status.ToString(), "secret")) << status;
  }
  const absl::Status empty =
      MakeConninfo("postgresql://me@db/jobs", WriteFile("\n", 0600)).status();
  EXPECT_TRUE(Has(std::string(empty.message()), "wanted a password")) << empty;
}

}  // namespace
}  // namespace quantry::server::postgres
