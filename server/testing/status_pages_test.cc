// The status pages of a whole quantryd: what they show, and what they refuse.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "server/testing/test_server.h"

namespace quantry::server::testing {
namespace {

class StatusPagesTest : public ::testing::Test {
 protected:
  StatusPagesTest() : server_("status-pages") {}

  std::string Body(const std::string& path) {
    const std::string response = server_.HttpGet(path);
    EXPECT_EQ(response.rfind("HTTP/1.1 200", 0), 0u) << path << response.substr(0, 200);
    return response.substr(response.find("\r\n\r\n") + 4);
  }
  nlohmann::json Get(const std::string& path) { return nlohmann::json::parse(Body(path)); }
  // The first line's number.
  std::string StatusOf(const std::string& path) { return server_.HttpGet(path).substr(9, 3); }

  // A block that is done, as a worker tells it.
  static v1::JobEvent BlockDone(int index, double loss) {
    v1::JobEvent event;
    event.mutable_block_done()->set_index(index);
    event.mutable_block_done()->set_loss_rtn(8);
    event.mutable_block_done()->set_loss_final(loss);
    return event;
  }

  TestServer server_;
};

TEST_F(StatusPagesTest, ShowsQueueWorkersAndJobs) {
  server_.Start();
  server_.Create("job-a");
  server_.Create("job-b");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  worker.Beat(lease, 5, {BlockDone(0, 4), BlockDone(1, 2)});
  const auto status = Get("/status.json");
  EXPECT_EQ(status.at("queue").at("depth"), 1);
  EXPECT_EQ(status.at("queue").at("jobs").at("RUNNING"), 1);
  ASSERT_EQ(status.at("running").size(), 1u);
  EXPECT_EQ(status.at("running")[0].at("id"), "job-a");
  EXPECT_EQ(status.at("running")[0].at("progress").at("stage"), "QUANTIZING");
  EXPECT_EQ(status.at("running")[0].at("blocks")[1].at("final"), 2);
  EXPECT_EQ(status.at("waiting")[0].at("id"), "job-b");
  EXPECT_EQ(status.at("ended").size(), 0u);
  EXPECT_EQ(status.at("workers")[0].at("jobs")[0].at("id"), "job-a");
}

TEST_F(StatusPagesTest, AJobsPageFollowsItToItsEnd) {
  server_.Start();
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  worker.Beat(lease, 5, {BlockDone(0, 4)});
  auto page = Get("/jobs/acme/job-a.json");
  EXPECT_EQ(page.at("state"), "RUNNING");
  EXPECT_EQ(page.at("blocks")[0].at("final"), 4);
  EXPECT_EQ(page.at("events").size(), page.at("last_sequence").get<size_t>());
  ASSERT_TRUE(worker.Complete(worker.WriteArtifact(lease)).ok());
  page = Get("/jobs/acme/job-a.json");
  EXPECT_EQ(page.at("state"), "SUCCEEDED");
  EXPECT_EQ(page.at("bits").at("linears"), 4.5);
  EXPECT_EQ(Get("/status.json").at("ended")[0].at("id"), "job-a");
}

TEST_F(StatusPagesTest, AFailedJobShowsWhyAndHowFarItCame) {
  server_.Start();
  server_.Create("job-a");
  FakeWorker worker(&server_, "w1");
  const v1::Lease lease = worker.Acquire();
  worker.Beat(lease, 5, {BlockDone(0, 4)});
  v1::FailJobResponse response;
  ASSERT_TRUE(worker.Fail(lease, false, &response).ok());
  const auto page = Get("/jobs/acme/job-a.json");
  EXPECT_EQ(page.at("state"), "FAILED");
  EXPECT_EQ(page.at("error").at("reason"), "INVALID_CHECKPOINT");
  EXPECT_EQ(page.at("blocks")[0].at("final"), 4);
}

TEST_F(StatusPagesTest, ListsAreBoundedAndCountersAreNot) {
  server_.Start();
  for (int i = 0; i < 55; ++i) server_.Create(absl::StrCat("job-", i));
  const auto status = Get("/status.json");
  EXPECT_EQ(status.at("waiting").size(), 50u);
  EXPECT_EQ(status.at("waiting")[0].at("id"), "job-0");
  EXPECT_EQ(status.at("queue").at("depth"), 55);
}

TEST_F(StatusPagesTest, PagesLoadTheirOwnFilesAlone) {
  server_.Start();
  for (const char* path : {"/", "/jobs/acme/job-a", "/assets/status.css", "/assets/status.js",
                           "/assets/icon.svg", "/status.json"}) {
    const std::string response = server_.HttpGet(path);
    for (const char* header :
         {"Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self';",
          "X-Content-Type-Options: nosniff", "X-Frame-Options: DENY",
          "Referrer-Policy: no-referrer", "Cache-Control: no-store"}) {
      EXPECT_NE(response.find(header), std::string::npos) << path << " " << header;
    }
    const std::string body = Body(path);
    EXPECT_FALSE(body.empty()) << path;
    EXPECT_EQ(body.find("innerHTML"), std::string::npos) << path;
    EXPECT_EQ(body.find("https://"), std::string::npos) << path;
    EXPECT_EQ(body.find("style="), std::string::npos) << path << ": the policy forbids it";
  }
}

TEST_F(StatusPagesTest, WhatIsNotThereIsNotFound) {
  server_.Start();
  for (const char* path : {"/index.html", "/jobs", "/jobs/acme", "/jobs/acme/NO",
                           "/jobs/acme/job-a.json", "/jobs//job-a", "/jobs/acme/job-a/x",
                           "/assets/", "/assets/../status.json", "/assets/job.html"}) {
    EXPECT_EQ(StatusOf(path), "404") << path;
  }
  EXPECT_EQ(StatusOf("/livez"), "200");
}

TEST_F(StatusPagesTest, CanBeSwitchedOff) {
  server_.config().set_status_page(false);
  server_.Start();
  for (const char* path : {"/", "/status.json", "/assets/status.js"}) {
    EXPECT_EQ(StatusOf(path), "404") << path;
  }
  EXPECT_EQ(StatusOf("/metrics"), "200");
}

}  // namespace
}  // namespace quantry::server::testing
