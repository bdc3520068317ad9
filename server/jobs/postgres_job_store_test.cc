#include "server/jobs/postgres_job_store.h"

#include <csignal>
#include <cstdlib>
#include <thread>

#include "server/jobs/postgres/conninfo.h"
#include "tests/conformance/job_store_suite.h"
#include "tests/support/postgres_server.h"

namespace quantry::server {
namespace {

using testing::PostgresServer;

// One server for all tests of this program; each takes a schema of its own.
PostgresServer* server_of_tests = nullptr;
int schemas = 0;

class ServerEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    ASSERT_TRUE(PostgresServer::IsInstalled())
        << "no PostgreSQL server on this machine: run scripts/bootstrap";
    server_ = std::make_unique<PostgresServer>();
    server_of_tests = server_.get();
  }
  void TearDown() override { server_ = nullptr; }

 private:
  std::unique_ptr<PostgresServer> server_;
};

const ::testing::Environment* const kEnvironment =
    ::testing::AddGlobalTestEnvironment(new ServerEnvironment);

std::string NewSchema() { return server_of_tests->UriOf("t" + std::to_string(++schemas)); }

std::string Conninfo(const std::string& uri) {
  auto conninfo = postgres::MakeConninfo(uri, "");
  EXPECT_EQ(Outcome(conninfo), "OK");
  return conninfo.value_or("");
}

std::unique_ptr<JobStore> MustOpen(const std::string& uri, const JobPolicy& policy = {}) {
  auto store = OpenPostgresJobStore({.conninfo = Conninfo(uri), .policy = policy});
  EXPECT_EQ(Outcome(store), "OK") << store.status();
  return store.ok() ? *std::move(store) : nullptr;
}

class PostgresInstance : public StoreInstance {
 public:
  explicit PostgresInstance(const JobPolicy& policy) : policy_(policy), uri_(NewSchema()) {
    Reopen();
  }
  JobStore& store() override { return *store_; }
  void Reopen() override {
    store_ = nullptr;
    store_ = MustOpen(uri_, policy_);
  }

 private:
  JobPolicy policy_;
  std::string uri_;
  std::unique_ptr<JobStore> store_;
};

INSTANTIATE_TEST_SUITE_P(Postgres, JobStoreSuite,
                         ::testing::Values(JobStoreFactory{
                             "Server",
                             [](const JobPolicy& policy) {
                               return std::make_unique<PostgresInstance>(policy);
                             }}),
                         FactoryName);

}  // namespace
}  // namespace quantry::server
