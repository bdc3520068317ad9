// What login asks a server before it remembers it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "client/cli/testing/fake_server.h"
#include "client/cli/testing/run.h"

namespace quantry::cli {
namespace {

using testing::HasSubstr;

class LoginTest : public testing::Test {
 protected:
  CliRun Login(const std::vector<std::string>& more) {
    std::vector<std::string> all = {"login", server.address(), "--output", "json"};
    all.insert(all.end(), more.begin(), more.end());
    return RunForTest(all, {{"XDG_CONFIG_HOME", folder / "config"}});
  }
  bool Remembered() const { return std::filesystem::exists(folder / "config"); }

  FakeServer server;
  TempFolder folder;
};

TEST_F(LoginTest, AsksForTheTenantsJobs) {
  const CliRun run = Login({"--tenant", "acme"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json()["version"], "fake");
  ASSERT_EQ(server.lists.size(), 1u);
  EXPECT_EQ(server.lists[0].parent(), "tenants/acme");
  EXPECT_EQ(server.lists[0].page_size(), 1);
  EXPECT_TRUE(Remembered());
}

TEST_F(LoginTest, CredentialsOfAnotherTenantAreToldAtOnce) {
  server.list_status = RpcError(grpc::NOT_FOUND, "JOB_NOT_FOUND",
                                "nothing named tenants/default for ann, whose tenant is acme");
  const CliRun run = Login({});
  EXPECT_EQ(run.code, 4) << run.err;
  EXPECT_EQ(run.json()["error"].value("next", ""),
            "your credentials are for tenant acme: add --tenant acme (or set QUANTRY_TENANT)");
  EXPECT_FALSE(Remembered());
  EXPECT_EQ(Login({"--no-check"}).code, 0);
}

TEST_F(LoginTest, AServerThatIsBusyNowIsRemembered) {
  server.list_status = RpcError(grpc::UNAVAILABLE, "STORE_UNAVAILABLE", "the database is away");
  EXPECT_EQ(Login({}).code, 0);
  EXPECT_TRUE(Remembered());
}

TEST_F(LoginTest, WithoutACheckNobodyIsAsked) {
  ASSERT_EQ(Login({"--no-check"}).code, 0);
  EXPECT_TRUE(server.lists.empty());
  EXPECT_TRUE(Remembered());
}

// As the worker port answers: gRPC alone, without a reason.
TEST_F(LoginTest, APortWithoutTheServiceIsPerhapsTheWorkers) {
  const CliRun run = RunForTest({"queue", "--server", server.address()});
  EXPECT_EQ(run.code, 2) << run.err;
  EXPECT_THAT(run.err, HasSubstr("worker port (7071)"));
  EXPECT_THAT(run.err, HasSubstr("tenant port (7070)"));
}

}  // namespace
}  // namespace quantry::cli
