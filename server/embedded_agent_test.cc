#include "server/embedded_agent.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <set>

#include "gtest/gtest.h"

namespace quantry::server {
namespace {

using std::chrono::milliseconds;

// A shell script stands in for the agent; it tells its deeds through a fifo,
// so that tests wait for what happens and not for time.
class EmbeddedAgentTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "embedded-agent-" + std::to_string(getpid());
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
    ASSERT_EQ(mkfifo((root_ + "/fifo").c_str(), 0600), 0);
    fifo_.open(root_ + "/fifo", std::ios::in | std::ios::out);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  EmbeddedAgent::Options Options(const std::string& script) {
    EmbeddedAgent::Options options;
    options.argv = {"/bin/sh", "-c", "say() { echo \"$1\" > " + root_ + "/fifo; }; " + script};
    options.first_pause = milliseconds(1);
    options.longest_pause = milliseconds(4);
    options.on_restart = [this] { ++restarts_; };
    return options;
  }
  std::string Heard() {
    std::string line;
    std::getline(fifo_, line);
    return line;
  }

  std::string root_;
  std::fstream fifo_;
  std::atomic<int> restarts_{0};
};

TEST_F(EmbeddedAgentTest, ADeadChildIsStartedAgain) {
  EmbeddedAgent agent(Options("say $$; kill -KILL $$"));
  std::set<std::string> pids;
  for (int i = 0; i < 4; ++i) pids.insert(Heard());
  EXPECT_EQ(pids.size(), 4u);
  EXPECT_GE(restarts_, 3);
}

TEST_F(EmbeddedAgentTest, StopAsksBeforeItKills) {
  EmbeddedAgent agent(Options("trap 'say bye; exit 0' TERM; say up; while :; do sleep 0.01; done"));
  EXPECT_EQ(Heard(), "up");
  agent.Stop(milliseconds(20000));
  EXPECT_EQ(Heard(), "bye");
  EXPECT_EQ(restarts_, 0);
}

TEST_F(EmbeddedAgentTest, AStubbornChildIsKilled) {
  auto agent = std::make_unique<EmbeddedAgent>(
      Options("trap '' TERM; say $$; while :; do sleep 0.01; done"));
  const pid_t pid = std::stoi(Heard());
  agent->Stop(milliseconds(50));
  EXPECT_NE(kill(pid, 0), 0);
}

TEST_F(EmbeddedAgentTest, AChildThatEndsWellIsLeftAlone) {
  EmbeddedAgent agent(Options("say done"));
  EXPECT_EQ(Heard(), "done");
  agent.Stop(milliseconds(20000));
  EXPECT_EQ(restarts_, 0);
}

TEST_F(EmbeddedAgentTest, SettingsOfTheServerStayWithTheServer) {
  setenv("QUANTRY_SLOTS", "99", 1);
  setenv("OTHER_SETTING", "kept", 1);
  EmbeddedAgent agent(Options("say \"<$QUANTRY_SLOTS><$OTHER_SETTING>\"; sleep 1000"));
  EXPECT_EQ(Heard(), "<><kept>");
  unsetenv("QUANTRY_SLOTS");
}

TEST_F(EmbeddedAgentTest, AMissingProgramIsTriedAgain) {
  std::promise<void> twice;
  EmbeddedAgent::Options options = Options("");
  options.argv = {"/nonexistent/quantry-worker"};
  options.on_restart = [&] {
    if (++restarts_ == 2) twice.set_value();
  };
  EmbeddedAgent agent(std::move(options));
  twice.get_future().wait();
}

}  // namespace
}  // namespace quantry::server
