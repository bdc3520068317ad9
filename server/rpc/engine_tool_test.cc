#include "server/rpc/engine_tool.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>
#include <vector>

#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

const Awaited kAlways = [] { return absl::OkStatus(); };

// A shell script stands in for the engine.
class EngineToolTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "engine-tool-" + std::to_string(getpid());
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  std::unique_ptr<EngineTool> Tool(const std::string& script) {
    const std::string path = root_ + "/engine";
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    chmod(path.c_str(), 0700);
    return NewEngineTool(path, root_, {.enabled = false, .account = {}, .max_file_bytes = 0});
  }
  absl::StatusOr<v1::Quote> Quote(const std::string& script,
                                  milliseconds time = milliseconds(20000),
                                  const Awaited& awaited = kAlways) {
    v1::EngineJob job;
    job.set_model_dir("/models/x");
    return Tool(script)->QuoteJob(job, {}, time, awaited);
  }
  bool JobFileLeft() const {
    for (const auto& entry : fs::directory_iterator(root_)) {
      if (entry.path().extension() == ".json") return true;
    }
    return false;
  }

  std::string root_;
};

TEST_F(EngineToolTest, Capabilities) {
  const auto capabilities =
      Tool(
          R"(test "$1" = methods && echo '{"methods": [{"name": "rtn"}], "architectures": ["opt"]}')")
          ->Capabilities(kAlways);
  ASSERT_TRUE(capabilities.ok()) << capabilities.status();
  EXPECT_EQ(capabilities->methods[0].name(), "rtn");
  EXPECT_EQ(capabilities->architectures[0], "opt");
}

TEST_F(EngineToolTest, TheCacheAsksOnceInTheBackground) {
  const auto tool =
      Tool(R"(echo x >> )" + root_ + R"(/asked; echo '{"methods": [{"name": "awq"}]}')");
  int answers = 0;
  {
    CapabilitiesCache cache(tool.get(), [&](const auto&) { ++answers; });
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(cache.Get(milliseconds(20000)).ok());
    EXPECT_TRUE(cache.answered());
  }
  EXPECT_EQ(answers, 1);
  EXPECT_EQ(fs::file_size(root_ + "/asked"), 2u);
}

// A disk that was cold at the start must not leave a server without methods for good.
TEST_F(EngineToolTest, TheCacheAsksAgainAfterAFailure) {
  ASSERT_EQ(mkfifo((root_ + "/gate").c_str(), 0600), 0);
  const auto tool = Tool("if test -e " + root_ + "/failed; then read line < " + root_ +
                         R"(/gate; echo '{"methods": [{"name": "awq"}]}'; else touch )" + root_ +
                         "/failed; echo nonsense; fi");
  std::promise<void> known;
  std::vector<bool> answers;
  CapabilitiesCache cache(
      tool.get(),
      [&](const auto& answer) {
        answers.push_back(answer.ok());
        if (answer.ok()) known.set_value();
      },
      milliseconds(1));
  EXPECT_TRUE(HasReason(cache.Get(milliseconds(20000)).status(), Reason::kEngineProtocol));
  std::ofstream(root_ + "/gate") << "go\n";
  ASSERT_EQ(known.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(answers, (std::vector<bool>{false, true}));
  while (!cache.Get(milliseconds(0)).ok()) std::this_thread::yield();
}

TEST_F(EngineToolTest, TheCachesEndDoesNotWaitForTheEngine) {
  ASSERT_EQ(mkfifo((root_ + "/gate").c_str(), 0600), 0);
  const auto tool = Tool("read line < " + root_ + "/gate");
  int answers = 0;
  {
    const CapabilitiesCache cache(tool.get(), [&](const auto&) { ++answers; });
  }
  EXPECT_EQ(answers, 0);
}

TEST_F(EngineToolTest, TheCacheDoesNotWaitForASlowEngine) {
  ASSERT_EQ(mkfifo((root_ + "/gate").c_str(), 0600), 0);
  const auto tool = Tool("read line < " + root_ + "/gate; echo nonsense");
  CapabilitiesCache cache(tool.get(), [](const auto&) {});
  EXPECT_TRUE(absl::IsUnavailable(cache.Get(milliseconds(1)).status()));
  EXPECT_FALSE(cache.answered());
  std::ofstream(root_ + "/gate") << "go\n";
  EXPECT_TRUE(HasReason(cache.Get(milliseconds(20000)).status(), Reason::kEngineProtocol));
}

TEST_F(EngineToolTest, QuoteReadsTheJobFile) {
  const auto quote = Quote(
      R"(test "$1 $2" = "quote --job" && grep -q '"model_dir":"/models/x"' "$3" &&
echo '{"steps": "12", "blocks": 3, "problems": ["too large"], "later": 1}')");
  ASSERT_TRUE(quote.ok()) << quote.status();
  EXPECT_EQ(quote->steps(), 12);
  EXPECT_EQ(quote->problems(0), "too large");
  EXPECT_FALSE(JobFileLeft());
}

TEST_F(EngineToolTest, TheEnginesErrorsKeepTheirReason) {
  const auto quote = Quote(
      R"(echo '{"error": {"failure_class": "FAILURE_CLASS_USER", "reason": "UNSUPPORTED_ARCHITECTURE",
"message": "wanted llama, got x", "metadata": {"got": "x"}}}' | tr '\n' ' '; exit 1)");
  EXPECT_TRUE(HasReason(quote.status(), Reason::kUnsupportedArchitecture)) << quote.status();
  EXPECT_EQ(MetadataOf(quote.status(), "got"), "x");
}

TEST_F(EngineToolTest, TheEnginesWordsDoNotNameTheJobFile) {
  const auto quote = Quote(
      R"(echo '{"error": {"reason": "INVALID_SPEC", "message": "'$3': got x", "metadata": {"file": "'$3'"}}}'; exit 1)");
  EXPECT_EQ(quote.status().message(), "the job: got x");
  EXPECT_EQ(MetadataOf(quote.status(), "file"), "the job");
}

TEST_F(EngineToolTest, NonsenseAndCrashesAreProtocolErrors) {
  for (const char* script : {"echo nonsense", "exit 3", "kill -SEGV $$", "echo '{}' ; exit 1",
                             "head -c 9000000 /dev/zero", "echo broken >&2; exit 1"}) {
    const auto quote = Quote(script);
    EXPECT_TRUE(HasReason(quote.status(), Reason::kEngineProtocol)) << script << quote.status();
    EXPECT_FALSE(JobFileLeft());
  }
}

TEST_F(EngineToolTest, AHangingEngineIsKilled) {
  const auto quote = Quote("sleep 1000", milliseconds(100));
  EXPECT_TRUE(HasReason(quote.status(), Reason::kDeadlineExceeded)) << quote.status();
  EXPECT_EQ(quote.status().message(), "quantry-engine did not answer within 0 s");
}

// Whatever it does with its output meanwhile.
TEST_F(EngineToolTest, AnEngineThatNobodyWaitsForIsKilled) {
  const std::string file = root_ + "/pid";
  for (const std::string output : {"", "exec >&- 2>&-; "}) {
    fs::remove(file);
    const auto started = [&] { return fs::exists(file) && fs::file_size(file) > 0; };
    const auto quote = Quote(
        output + "echo $$ > " + file + "; exec sleep 1000", milliseconds(20000),
        [&] { return started() ? absl::CancelledError("the caller left") : absl::OkStatus(); });
    EXPECT_TRUE(absl::IsCancelled(quote.status())) << output << quote.status();
    EXPECT_EQ(quote.status().message(), "the caller left");
    EXPECT_FALSE(JobFileLeft());
    pid_t pid = 0;
    std::ifstream(file) >> pid;
    ASSERT_GT(pid, 0);
    EXPECT_EQ(kill(pid, 0), -1) << output;
    EXPECT_EQ(errno, ESRCH) << output;
  }
}

// common/sandbox/testing/probe.cc tries them while it plays the engine.
TEST_F(EngineToolTest, TheEngineIsConfinedToItsInputs) {
  const auto quote =
      NewEngineTool(SANDBOX_PROBE, root_, {})->QuoteJob({}, {}, milliseconds(20000), kAlways);
  ASSERT_TRUE(quote.ok()) << quote.status();
  const std::vector<std::string> problems(quote->problems().begin(), quote->problems().end());
  EXPECT_EQ(problems, (std::vector<std::string>{"read ok", "tcp ENOSYS", "read EACCES",
                                                "write EACCES", "exec EACCES"}));
}

TEST_F(EngineToolTest, AMissingEngineIsNamed) {
  const auto capabilities = NewEngineTool("/nonexistent/engine", root_, {})->Capabilities(kAlways);
  EXPECT_TRUE(HasReason(capabilities.status(), Reason::kFileNotFound));
  EXPECT_NE(capabilities.status().message().find("/nonexistent/engine"), std::string::npos);
}

}  // namespace
}  // namespace quantry::server
