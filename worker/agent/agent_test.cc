#include "worker/agent/agent.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>
#include <thread>

#include "common/digest.h"
#include "common/errors.h"
#include "common/sandbox/landlock.h"
#include "gtest/gtest.h"
#include "tests/support/files.h"
#include "worker/agent/checkpoint_uploader.h"
#include "worker/agent/lease_keeper.h"
#include "worker/agent/testing/fake_worker_service.h"

namespace quantry::agent {
namespace {

namespace fs = std::filesystem;
using State = FakeWorkerService::State;
using test::ReadFile;
using test::WriteFile;

constexpr char kJob[] = "tenants/acme/quantizationJobs/job-one";

// One agent with everything it is made of, on a thread of its own.
class RunningAgent {
 public:
  RunningAgent(const std::string& server, const std::string& work_dir, AgentOptions options,
               bool confined)
      : work_dir_(*WorkDir::Open(work_dir)),
        client_(server, Info()),
        cache_(work_dir_.cache()),
        materializer_(cache_, {}),
        engine_({.binary = SYNTHETIC_ENGINE,
                 .kill_grace = std::chrono::milliseconds(200),
                 .confinement = {.enabled = confined, .account = {}, .max_file_bytes = 0}}),
        gpus_(GpuInventory::Open()),
        metrics_(1, "synthetic", *gpus_),
        agent_(options, client_, work_dir_, cache_, materializer_, engine_, metrics_,
               EngineDefaults{.device = "cpu", .threads = 1}),
        thread_([this] { status_ = agent_.Run(); }) {}
  ~RunningAgent() { (void)End(); }

  Agent& agent() { return agent_; }
  WorkerMetrics& metrics() { return metrics_; }
  absl::Status End() {
    if (thread_.joinable()) {
      agent_.Drain();
      thread_.join();
    }
    return status_;
  }
  absl::Status Join() {
    thread_.join();
    return status_;
  }

 private:
  static v1::WorkerInfo Info() {
    v1::WorkerInfo info;
    info.set_worker_id("w");
    return info;
  }

  WorkDir work_dir_;
  WorkerClient client_;
  BlobCache cache_;
  Materializer materializer_;
  EngineRunner engine_;
  std::unique_ptr<GpuInventory> gpus_;
  WorkerMetrics metrics_;
  Agent agent_;
  absl::Status status_;
  std::thread thread_;
};

class AgentTest : public testing::Test {
 protected:
  AgentTest() {
    char name[] = "/tmp/quantry-agent-XXXXXX";
    root_ = mkdtemp(name);
    WriteFile(root_ / "inputs/model/config.json", "{}");
    WriteFile(root_ / "inputs/model/model.safetensors", "weights");
  }
  ~AgentTest() override {
    agent_.reset();
    fs::remove_all(root_);
  }

  // A lease whose engine follows `script`.
  v1::Lease Lease(const std::string& script, int epoch = 1) {
    const fs::path file = root_ / "inputs" / ("script-" + std::to_string(epoch));
    WriteFile(file, script);
    v1::Lease lease;
    lease.set_job(kJob);
    lease.set_job_uid("uid-1");
    lease.set_epoch(epoch);
    lease.mutable_spec()->mutable_model()->set_local_path((root_ / "inputs/model").native());
    lease.mutable_spec()->mutable_calibration()->mutable_source()->set_local_path(file.native());
    lease.mutable_spec()->mutable_method()->mutable_rtn();
    const std::string store = "file://" + (root_ / "store/acme/uid-1").native();
    lease.set_output_uri(store + "/" + std::to_string(epoch));
    lease.set_checkpoint_uri(store + "/checkpoints/" + std::to_string(epoch));
    lease.set_blob_uri("file://" + (root_ / "blobs").native());
    lease.add_local_roots((root_ / "inputs").native());
    return lease;
  }

  void Queue(const v1::Lease& lease) {
    server_.With([&](State& state) { state.queue.push_back(lease); });
  }

  RunningAgent& Start(const std::string& work = "work") {
    agent_.reset();  // its work folder
    AgentOptions options;
    options.acquire_wait = std::chrono::milliseconds(500);
    options.drain_grace = std::chrono::seconds(10);
    agent_ = std::make_unique<RunningAgent>(server_.address(), root_ / work, options, confined_);
    return *agent_;
  }

  // Runs one lease to its end.
  void RunJob(const v1::Lease& lease, const std::string& work = "work") {
    Queue(lease);
    Start(work);
    ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
    EXPECT_TRUE(agent_->End().ok());
  }

  State Result() {
    State copy;
    server_.With([&](State& state) { copy = state; });
    return copy;
  }

  // Waits until a script's `touch` of this name, returns the engine's pid.
  pid_t WaitForTouch(const std::string& name) {
    const fs::path file = root_ / name;
    for (int i = 0; i < 3000 && ReadFile(file).empty(); ++i) usleep(10000);
    return std::atoi(ReadFile(file).c_str());
  }
  std::string Path(const std::string& name) { return (root_ / name).native(); }

  static bool IsGone(pid_t pid) { return pid > 0 && kill(pid, 0) != 0 && errno == ESRCH; }

  fs::path root_;
  FakeWorkerService server_;
  bool confined_ = false;  // scripts touch files outside
  std::unique_ptr<RunningAgent> agent_;
};

constexpr char kWholeScript[] =
    "stage LOADING\nstage QUANTIZING\nblock\nblock\nblock\nblock\nstage "
    "PACKING\nartifact\ncomplete\n";

TEST_F(AgentTest, AConfinedEngineGivesTheSameAndEscapesNowhere) {
  RunJob(Lease("block\nblock\nartifact\ncomplete\n"));
  const fs::path artifact = root_ / "store/acme/uid-1/1/model.safetensors";
  const std::string wanted = ReadFile(artifact);
  EXPECT_FALSE(wanted.empty());
  fs::remove_all(root_ / "store");
  server_.With([](State& state) { state = State(); });
  confined_ = true;
  RunJob(Lease("block\nblock\ntouch " + (root_ / "escaped").native() + "\nartifact\ncomplete\n", 2),
         "work2");
  EXPECT_EQ(ReadFile(root_ / "store/acme/uid-1/2/model.safetensors"), wanted);
  EXPECT_EQ(fs::exists(root_ / "escaped"), LandlockRules::Abi() == 0);
}

// The agent may read it, a confined engine may not.
TEST_F(AgentTest, LinksOfAnEngineLeadNowhere) {
  WriteFile(root_ / "keys/worker.key", "the worker's own key");
  const std::string key = Path("keys/worker.key"), keys = Path("keys");
  const struct {
    const char* name;
    std::string script;
    const char* reason;
  } cases[] = {
      {"checkpoint file", "block\nlink checkpoint/loot " + key + "\noffer loot\nexit 3\n",
       "ENGINE_CRASHED"},
      {"folder above one", "block\nlink checkpoint/a " + keys + "\noffer a/worker.key\nexit 3\n",
       "ENGINE_CRASHED"},
      {"artifact file", "block\nlink output/fill.bin " + key + "\nartifact\ncomplete\n",
       "ENGINE_PROTOCOL"},
      {"manifest", "link output/manifest.json " + key + "\ncomplete\n", "ENGINE_PROTOCOL"},
  };
  int epoch = 0;
  for (const auto& c : cases) {
    server_.With([](State& state) { state.failed.clear(); });
    RunJob(Lease(c.script, ++epoch));
    const State state = Result();
    ASSERT_EQ(state.failed.size(), 1u) << c.name;
    const std::string message = state.failed[0].error().message();
    EXPECT_EQ(state.failed[0].error().reason(), c.reason) << c.name << message;
    EXPECT_EQ(message.find("own key"), std::string::npos) << c.name << message;
    for (const auto& entry : fs::recursive_directory_iterator(root_)) {
      if (!fs::is_regular_file(entry.symlink_status()) || entry.path() == key) continue;
      EXPECT_NE(ReadFile(entry.path()), "the worker's own key") << c.name << entry.path();
    }
  }
}

TEST_F(AgentTest, WholeJob) {
  RunJob(Lease(kWholeScript));
  const State state = Result();
  ASSERT_EQ(state.completed.size(), 1u);
  const auto& request = state.completed[0];
  const fs::path artifact = root_ / "store/acme/uid-1/1";
  const std::string manifest = ReadFile(artifact / "manifest.json");
  EXPECT_EQ(request.manifest_sha256(), Sha256Hex(manifest));
  EXPECT_EQ(request.file_count(), 3);
  EXPECT_EQ(ReadFile(artifact / "nested/config.json"), "{}");
  EXPECT_EQ(request.result().quality().perplexity().quantized(), 5);
  EXPECT_EQ(request.result().artifact_uri(), "file://" + artifact.native());
  EXPECT_EQ(request.result().peak_rss_bytes(), 123);

  std::string story;
  for (const v1::JobEvent& event : state.events) {
    EXPECT_EQ(event.epoch(), 1);
    if (event.has_stage_changed()) story += v1::Stage_Name(event.stage_changed().stage()) + " ";
    if (event.has_block_done()) story += std::to_string(event.block_done().index()) + " ";
  }
  EXPECT_EQ(story,
            "STAGE_FETCHING STAGE_LOADING STAGE_QUANTIZING 0 1 2 3 STAGE_PACKING STAGE_UPLOADING "
            "STAGE_COMMITTING ");
  EXPECT_TRUE(fs::is_empty(root_ / "work/jobs"));
  EXPECT_EQ(state.last_progress.stage(), v1::STAGE_COMMITTING);
  EXPECT_EQ(state.last_progress.ratio(), 1);
  EXPECT_TRUE(request.result().timing().stages_s().contains("STAGE_FETCHING"));
}

TEST_F(AgentTest, CheckpointsAreCommittedAndSupersededFilesRemoved) {
  std::string script =
      "block\nblock\ntouch " + Path("two") + "\nwait " + Path("go") + "\nblock\nhang\n";
  Queue(Lease(script));
  Start();
  ASSERT_TRUE(server_.WaitFor([](const State& state) {
    return !state.checkpoints.empty() && state.checkpoints.back().checkpoint().blocks_done() == 2;
  }));
  const auto ref = Result().checkpoints.back().checkpoint();
  ASSERT_EQ(ref.files_size(), 3);
  const fs::path folder = root_ / "store/acme/uid-1/checkpoints/1";
  for (const auto& file : ref.files()) {
    EXPECT_EQ(Sha256Hex(ReadFile(folder / StoredName(file))), file.sha256()) << file.path();
  }
  // Drained at its next checkpoint: only what that one needs is left.
  agent_->agent().Drain();
  WriteFile(root_ / "go", "");
  EXPECT_TRUE(agent_->Join().ok());
  const auto last = Result().checkpoints.back().checkpoint();
  EXPECT_EQ(last.blocks_done(), 3);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()),
            last.files_size());
  EXPECT_EQ(last.files(0).sha256(), ref.files(0).sha256());
}

// Without events in the commit the order would depend on the next heartbeat.
TEST_F(AgentTest, WhatLedToACheckpointComesBeforeIt) {
  server_.With([](State& state) { state.silent = true; });
  Queue(Lease("stage LOADING\nstage QUANTIZING\nblock\nhang\n"));
  Start();
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.checkpoints.empty(); }));
  std::string story;
  for (const v1::JobEvent& event : Result().events) {
    if (event.has_stage_changed()) story += v1::Stage_Name(event.stage_changed().stage()) + " ";
    if (event.has_block_done()) story += "block ";
    if (event.has_checkpoint()) story += "checkpoint ";
  }
  EXPECT_EQ(story, "STAGE_FETCHING STAGE_LOADING STAGE_QUANTIZING block checkpoint ");
  agent_->agent().Drain();  // and once more at the end: no wait for a checkpoint
}

TEST_F(AgentTest, CheckpointsAreRemovedOnceTheJobSucceeded) {
  RunJob(Lease(kWholeScript));
  EXPECT_EQ(Result().completed.size(), 1u);
  EXPECT_FALSE(fs::exists(root_ / "store/acme/uid-1/checkpoints/1"));
}

TEST_F(AgentTest, CancelKillsAStubbornEngine) {
  Queue(Lease("block\nignore-term\ntouch " + Path("here") + "\nhang\n"));
  Start();
  const pid_t engine = WaitForTouch("here");
  ASSERT_GT(engine, 0);
  const auto start = std::chrono::steady_clock::now();
  server_.With([](State& state) { state.orders[kJob] = v1::DIRECTIVE_CANCEL; });
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.failed.empty(); }));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_TRUE(Result().failed[0].cancelled());
  EXPECT_FALSE(Result().failed[0].retryable());
  EXPECT_TRUE(IsGone(engine));
  EXPECT_TRUE(agent_->End().ok());
  EXPECT_TRUE(fs::is_empty(root_ / "work/jobs")) << "nobody comes back for the checkpoint";
}

TEST_F(AgentTest, CancelEndsAnEngineThatFloodsItsPipe) {
  Queue(Lease("touch " + Path("here") + "\nflood\n"));
  Start();
  const pid_t engine = WaitForTouch("here");
  ASSERT_GT(engine, 0);
  const auto start = std::chrono::steady_clock::now();
  server_.With([](State& state) { state.orders[kJob] = v1::DIRECTIVE_CANCEL; });
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.failed.empty(); }));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << "not for ever";
  EXPECT_TRUE(IsGone(engine));
}

TEST_F(AgentTest, LostLeaseIsDroppedSilently) {
  Queue(Lease("block\ntouch " + Path("here") + "\nhang\n"));
  Start();
  const pid_t engine = WaitForTouch("here");
  ASSERT_GT(engine, 0);
  server_.With([](State& state) { state.orders[kJob] = v1::DIRECTIVE_LOST; });
  // The slot is free again: it takes the next job.
  auto next = Lease(kWholeScript, 2);
  next.set_job("tenants/acme/quantizationJobs/job-two");
  next.set_job_uid("uid-2");
  Queue(next);
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.completed.empty(); }));
  EXPECT_TRUE(IsGone(engine));
  EXPECT_TRUE(Result().failed.empty());
  EXPECT_TRUE(Result().released.empty());
}

TEST_F(AgentTest, SilentServerMeansLostLease) {
  server_.With([](State& state) {
    state.ttl_ms = 1500;
    state.heartbeat_interval_ms = 100;
  });
  Queue(Lease("touch " + Path("here") + "\nhang\n"));
  Start();
  const pid_t engine = WaitForTouch("here");
  ASSERT_GT(engine, 0);
  const auto start = std::chrono::steady_clock::now();
  server_.With([](State& state) { state.silent = true; });
  for (int i = 0; i < 1000 && !IsGone(engine); ++i) usleep(5000);
  EXPECT_TRUE(IsGone(engine));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1500));
  server_.With([](State& state) { state.silent = false; });
  EXPECT_TRUE(agent_->End().ok());
  EXPECT_FALSE(Result().AnyEnd());
}

// A server refuses calls above 4 MiB.
TEST_F(AgentTest, BeatsOfManyFullJobsFitIntoOneCallAndAllGetTheirTurn) {
  constexpr int kJobs = 40;
  v1::WorkerInfo info;
  info.set_worker_id("w");
  WorkerClient client(server_.address(), info);
  ASSERT_TRUE(client.Register({}).ok());
  LeaseKeeper keeper(client, nullptr);
  std::vector<std::shared_ptr<JobSession>> sessions;
  for (int i = 0; i < kJobs; ++i) {
    v1::Lease lease = Lease("");
    lease.set_job("tenants/acme/quantizationJobs/job-" + std::to_string(i));
    lease.mutable_ttl()->set_seconds(60);
    sessions.push_back(std::make_shared<JobSession>(lease, std::chrono::steady_clock::now()));
    for (int k = 0; k < 40; ++k) {
      sessions.back()->AddLog(v1::LogLine::LEVEL_INFO, std::string(4096, 'x'));
    }
    server_.With([&](State& state) { state.epochs[lease.job()] = 1; });
    keeper.Add(sessions.back());
  }
  const auto waiting = [&] {
    return std::any_of(sessions.begin(), sessions.end(), [](auto& s) { return s->HasEvents(); });
  };
  for (int beats = 0; beats < 100 && waiting(); ++beats) {
    ASSERT_TRUE(keeper.BeatOnce());
  }
  EXPECT_FALSE(waiting());
  EXPECT_EQ(Result().events.size(), static_cast<std::size_t>(kJobs * 40));
}

TEST_F(AgentTest, LostRepliesRepeatTheSameEvents) {
  server_.With([](State& state) { state.lose_replies = 3; });
  Queue(Lease("stage LOADING\nblock\ntouch " + Path("here") + "\nwait " + Path("go") +
              "\nblock\nblock\nblock\nartifact\ncomplete\n"));
  Start();
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.lose_replies == 0; }));
  WriteFile(root_ / "go", "");
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.completed.empty(); }));
  const State state = Result();
  EXPECT_GT(state.repeated_events, 0);
  int blocks = 0;
  for (const v1::JobEvent& event : state.events) {
    if (!event.has_block_done()) continue;
    EXPECT_EQ(event.block_done().index(), blocks++);
  }
  EXPECT_EQ(blocks, 4);
}

TEST_F(AgentTest, ACommitThatAStoppingServerEndedIsRepeated) {
  server_.With([](State& state) { state.ended_commits = 1; });
  Queue(Lease(kWholeScript));
  Start();
  ASSERT_TRUE(server_.WaitFor(
      [](const State& state) { return state.completed.size() == 2 || !state.failed.empty(); }));
  const State state = Result();
  EXPECT_TRUE(state.failed.empty());
  ASSERT_EQ(state.completed.size(), 2u);
  EXPECT_EQ(state.completed[0].manifest_sha256(), state.completed[1].manifest_sha256());
}

// Of a server with a full disk, or too many calls: it took nothing, so the attempt is not over.
TEST_F(AgentTest, AnEndThatTheServerHasNoRoomForIsToldAgain) {
  const absl::Status refusals[] = {MakeError(Reason::kDiskFull, "no space left in /data"),
                                   MakeDetailedError(Reason::kResourceLimit, "too many calls wait",
                                                     {.retry_after = std::chrono::seconds(1)})};
  int epoch = 0;
  for (const absl::Status& refusal : refusals) {
    for (const std::string script : {kWholeScript, "block\nexit 3\n"}) {
      SCOPED_TRACE(std::string(refusal.message()) + " " + script);
      server_.With([&](State& state) {
        state = State();
        state.heartbeat_interval_ms = 50;
        state.end_refusal = refusal;
        state.end_refusals = 1'000'000;
      });
      Queue(Lease(script, ++epoch));
      Start();
      ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.ends_refused >= 2; }));
      const int beats = Result().beats;
      EXPECT_TRUE(server_.WaitFor([&](const State& state) { return state.beats > beats + 1; }));
      server_.With([](State& state) { state.end_refusals = 0; });
      ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
      EXPECT_TRUE(agent_->End().ok());
      EXPECT_EQ(Result().completed.size(), script == kWholeScript ? 1u : 0u);
      EXPECT_EQ(Result().failed.size(), script == kWholeScript ? 0u : 1u);
    }
  }
}

// What gRPC makes of a stream that broke, or of a proxy's answer: not quantryd's word.
TEST_F(AgentTest, AnEndWhoseAnswerWasLostIsRepeated) {
  for (const absl::Status& torn :
       {absl::UnknownError("Stream removed"), absl::InternalError("RST_STREAM")}) {
    server_.With([&](State& state) {
      state = {};
      state.end_refusal = torn;
      state.end_refusals = 1;
    });
    RunJob(Lease(kWholeScript));
    EXPECT_EQ(Result().completed.size(), 1u) << torn;
    EXPECT_TRUE(Result().failed.empty()) << torn;
  }
}

// gRPC's word for a message that is too large; it would be so again.
TEST_F(AgentTest, AnEndThatIsRefusedForItselfIsNotRepeated) {
  server_.With([](State& state) {
    state.end_refusal = absl::ResourceExhaustedError("Received message larger than max");
    state.end_refusals = 1;
  });
  RunJob(Lease(kWholeScript));
  EXPECT_TRUE(Result().completed.empty());
  EXPECT_EQ(Result().failed.size(), 1u);
}

TEST_F(AgentTest, ForgottenSessionRegistersAgain) {
  server_.With([](State& state) { state.forget_session_once = true; });
  Queue(Lease("wait " + Path("go") + "\n" + kWholeScript));
  Start();
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.registrations == 2; }));
  WriteFile(root_ / "go", "");
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
  EXPECT_EQ(Result().completed.size(), 1u);
}

// One of several servers that is cut off from the database; the others are ready.
TEST_F(AgentTest, AServerLongWithoutItsStoreIsLeftForANewConnection) {
  server_.With([](State& state) {
    state.ttl_ms = 6000;
    state.heartbeat_interval_ms = 100;
  });
  Queue(Lease("wait " + Path("go") + "\n" + kWholeScript));
  Start();
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.beats >= 2; }));
  EXPECT_EQ(Result().connections.size(), 1u);
  server_.With([](State& state) { state.store_away = true; });
  EXPECT_TRUE(server_.WaitFor([](const State& state) { return state.connections.size() >= 2; }));
  server_.With([](State& state) { state.store_away = false; });
  WriteFile(root_ / "go", "");
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
  EXPECT_EQ(Result().completed.size(), 1u) << "the lease was held all the time";
}

TEST_F(AgentTest, EngineFailuresAreClassified) {
  const struct {
    const char* name;
    const char* script;
    v1::FailureClass failure_class;
    const char* reason;
    bool retryable;
    int signal;
    int code;
  } cases[] = {
      {"segfault", "stderr last words\nsignal 11\nhang\n", v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED",
       true, SIGSEGV, 0},
      {"killed", "signal 9\nhang\n", v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED", true, SIGKILL, 0},
      {"exit 3", "exit 3\n", v1::FAILURE_CLASS_BUG, "ENGINE_CRASHED", true, 0, 3},
      {"exit 0 without a word", "exit 0\n", v1::FAILURE_CLASS_BUG, "ENGINE_PROTOCOL", true, 0, 0},
      {"only garbage", "garbage\nexit 1\n", v1::FAILURE_CLASS_BUG, "ENGINE_PROTOCOL", true, 0, 1},
      {"user error", "error USER INVALID_CHECKPOINT bad header\n", v1::FAILURE_CLASS_USER,
       "INVALID_CHECKPOINT", false, 0, 1},
      {"no memory", "error RESOURCE OUT_OF_MEMORY too big\n", v1::FAILURE_CLASS_RESOURCE,
       "OUT_OF_MEMORY", true, 0, 1},
      {"our own bug", "error BUG INTERNAL broken invariant\n", v1::FAILURE_CLASS_BUG, "INTERNAL",
       false, 0, 1},
      {"completed without artifact", "complete\n", v1::FAILURE_CLASS_BUG, "ENGINE_PROTOCOL", true,
       0, 0},
  };
  int epoch = 0;
  for (const auto& c : cases) {
    server_.With([](State& state) { state.failed.clear(); });
    RunJob(Lease(c.script, ++epoch));
    const State state = Result();
    ASSERT_EQ(state.failed.size(), 1u) << c.name;
    const auto& request = state.failed[0];
    EXPECT_EQ(request.error().failure_class(), c.failure_class) << c.name;
    EXPECT_EQ(request.error().reason(), c.reason) << c.name << request.error().message();
    EXPECT_EQ(request.retryable(), c.retryable) << c.name;
    EXPECT_EQ(request.exit_signal(), c.signal) << c.name;
    EXPECT_EQ(request.exit_code(), c.code) << c.name;
    EXPECT_FALSE(request.error().message().empty()) << c.name;
  }
}

TEST_F(AgentTest, FailuresDoNotTellTheMachinesFolders) {
  const std::string root = Path("work/jobs/uid-1/1");
  RunJob(Lease("stderr reading " + root + "/model/config.json\nerror USER INVALID_CHECKPOINT " +
               root + "/model/model.safetensors: bad header in " + Path("inputs/model") + "\n"));
  const auto request = Result().failed.at(0);
  EXPECT_EQ(request.error().message(),
            "model/model.safetensors: bad header in " + Path("inputs/model"));
  EXPECT_EQ(request.log_tail(), "reading model/config.json\n");
}

TEST_F(AgentTest, ALongFailureIsToldAsFarAsTheServerTakesIt) {
  RunJob(Lease("error USER INVALID_CHECKPOINT " + std::string(9000, 'm') + "\n"));
  EXPECT_EQ(Result().failed.at(0).error().message(), std::string(8192, 'm'));
}

TEST_F(AgentTest, LogTailComesWithTheFailure) {
  RunJob(Lease("stderr one\nstderr two\xff\nsignal 6\nhang\n"));
  EXPECT_EQ(Result().failed.at(0).log_tail(), "one\ntwo?\n");
  EXPECT_NE(Result().failed.at(0).error().message().find("two"), std::string::npos);
}

TEST_F(AgentTest, GarbageOnStdoutHarmsNothing) {
  RunJob(Lease(std::string("garbage\n") + kWholeScript));
  EXPECT_EQ(Result().completed.size(), 1u);
}

// Crashes after two blocks, then resumes; `work` says where the second attempt
// runs and `before` what happens in between.
class ResumeTest : public AgentTest {
 protected:
  void CrashAfterTwoBlocks() {
    Queue(Lease("block\nblock\ntouch " + Path("two") + "\nwait " + Path("crash") +
                "\nsignal 11\nhang\n"));
    Start();
    ASSERT_TRUE(server_.WaitFor([](const State& state) {
      return !state.checkpoints.empty() && state.checkpoints.back().checkpoint().blocks_done() == 2;
    }));
    WriteFile(root_ / "crash", "");
    ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
    ASSERT_TRUE(agent_->End().ok());
    agent_.reset();
    server_.With([](State& state) {
      state.failed.clear();
      state.events.clear();
    });
  }

  std::string ResumedBlocks(const v1::Lease& lease, const std::string& work) {
    RunJob(lease, work);
    std::string blocks;
    for (const v1::JobEvent& event : Result().events) {
      if (event.has_block_done()) blocks += std::to_string(event.block_done().index());
    }
    return blocks;
  }

  v1::Lease SecondLease() {
    auto lease = Lease(kWholeScript, 2);
    *lease.mutable_resume() = Result().checkpoints.back().checkpoint();
    return lease;
  }

  std::string Undisturbed() { return "block 0block 31block 62block 93"; }
};

TEST_F(ResumeTest, FromTheStore) {
  CrashAfterTwoBlocks();
  EXPECT_EQ(ResumedBlocks(SecondLease(), "other-machine"), "23");
  ASSERT_EQ(Result().completed.size(), 1u);
  EXPECT_EQ(ReadFile(root_ / "store/acme/uid-1/2/model.safetensors"), Undisturbed());
}

TEST_F(ResumeTest, FromTheSameMachineWithoutTheStore) {
  CrashAfterTwoBlocks();
  fs::remove_all(root_ / "store/acme/uid-1/checkpoints");
  EXPECT_EQ(ResumedBlocks(SecondLease(), "work"), "23");
  EXPECT_EQ(ReadFile(root_ / "store/acme/uid-1/2/model.safetensors"), Undisturbed());
}

TEST_F(ResumeTest, DamagedCheckpointStartsOver) {
  CrashAfterTwoBlocks();
  const auto ref = Result().checkpoints.back().checkpoint();
  WriteFile(root_ / "store/acme/uid-1/checkpoints/1" / StoredName(ref.files(1)), "flipped");
  EXPECT_EQ(ResumedBlocks(SecondLease(), "other-machine"), "0123");
  EXPECT_EQ(ReadFile(root_ / "store/acme/uid-1/2/model.safetensors"), Undisturbed());
}

TEST_F(AgentTest, DrainReleasesAfterTheNextCheckpoint) {
  Queue(Lease("block\ntouch " + Path("here") + "\nwait " + Path("go") + "\nblock\nhang\n"));
  Start();
  const pid_t engine = WaitForTouch("here");
  ASSERT_GT(engine, 0);
  // The agent has seen the first checkpoint: the next one is the second.
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.checkpoints.empty(); }));
  agent_->agent().Drain();
  EXPECT_EQ(agent_->agent().NotReady(), "draining");
  WriteFile(root_ / "go", "");
  EXPECT_TRUE(agent_->Join().ok());
  const State state = Result();
  ASSERT_EQ(state.released.size(), 1u);
  EXPECT_EQ(state.checkpoints.back().checkpoint().blocks_done(), 2);
  EXPECT_TRUE(IsGone(engine));
}

TEST_F(AgentTest, SecondDrainDoesNotWait) {
  Queue(Lease("block\ntouch " + Path("here") + "\nhang\n"));
  Start();
  ASSERT_GT(WaitForTouch("here"), 0);
  agent_->agent().Drain();
  agent_->agent().Drain();
  EXPECT_TRUE(agent_->Join().ok());
  EXPECT_EQ(Result().released.size(), 1u);
}

TEST_F(AgentTest, ReleaseDirectiveStopsAtTheNextCheckpoint) {
  server_.With([](State& state) { state.heartbeat_interval_ms = 50; });
  Queue(Lease("block\ntouch " + Path("here") + "\nwait " + Path("go") + "\nblock\nhang\n"));
  Start();
  ASSERT_GT(WaitForTouch("here"), 0);
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return !state.checkpoints.empty(); }));
  int beats = 0;
  server_.With([&](State& state) {
    state.orders[kJob] = v1::DIRECTIVE_CHECKPOINT_AND_RELEASE;
    beats = state.beats;
  });
  // The beat after the one that carried the order: the agent knows by then.
  ASSERT_TRUE(server_.WaitFor([&](const State& state) { return state.beats >= beats + 2; }));
  WriteFile(root_ / "go", "");
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
  EXPECT_EQ(Result().released.size(), 1u);
  EXPECT_EQ(Result().checkpoints.back().checkpoint().blocks_done(), 2);
}

TEST_F(AgentTest, TerminateDirectiveEndsTheAgent) {
  server_.With([](State& state) {
    state.worker_order = v1::WORKER_DIRECTIVE_TERMINATE;
    state.heartbeat_interval_ms = 50;
  });
  Start();
  EXPECT_TRUE(agent_->Join().ok());
}

TEST_F(AgentTest, UnwritableOutputIsTheEnvironments) {
  auto lease = Lease(kWholeScript);
  WriteFile(root_ / "file", "in the way");
  lease.set_output_uri("file://" + (root_ / "file/below").native());
  RunJob(lease);
  ASSERT_EQ(Result().failed.size(), 1u);
  EXPECT_EQ(Result().failed[0].error().reason(), "STORAGE_ERROR");
  EXPECT_TRUE(Result().failed[0].retryable());
}

TEST_F(AgentTest, UploadedModelAndText) {
  auto lease = Lease(kWholeScript);
  auto* model = lease.mutable_spec()->mutable_model()->mutable_blobs();
  const auto add = [&](v1::BlobFile* file, const std::string& name, const std::string& bytes) {
    file->set_path(name);
    file->set_sha256(Sha256Hex(bytes));
    file->set_size_bytes(static_cast<std::int64_t>(bytes.size()));
    WriteFile(root_ / "blobs" / file->sha256(), bytes);
  };
  add(model->add_files(), "config.json", "{}");
  add(model->add_files(), "model.safetensors", "weights");
  add(lease.mutable_spec()->mutable_calibration()->mutable_source()->mutable_blob(), "c.txt",
      kWholeScript);
  RunJob(lease);
  EXPECT_EQ(Result().completed.size(), 1u);
  EXPECT_TRUE(fs::exists(root_ / "work/cache"));

  // A flipped byte in the server's store, and nothing in the cache.
  WriteFile(root_ / "blobs" / model->files(1).sha256(), "weigths");
  server_.With([](State& state) { state.completed.clear(); });
  lease.set_epoch(2);
  RunJob(lease, "fresh");
  ASSERT_EQ(Result().failed.size(), 1u);
  EXPECT_EQ(Result().failed[0].error().reason(), "ARTIFACT_CORRUPT");
  EXPECT_EQ(Result().failed[0].error().metadata().at("sha256"), model->files(1).sha256());
}

TEST_F(AgentTest, ForbiddenSourceNeverStartsAnEngine) {
  auto lease = Lease("touch " + Path("started") + "\n");
  lease.mutable_spec()->mutable_model()->set_local_path("/etc");
  RunJob(lease);
  ASSERT_EQ(Result().failed.size(), 1u);
  EXPECT_EQ(Result().failed[0].error().reason(), "SOURCE_FORBIDDEN");
  EXPECT_EQ(Result().failed[0].error().failure_class(), v1::FAILURE_CLASS_USER);
  EXPECT_FALSE(fs::exists(root_ / "started"));
}

TEST_F(AgentTest, OnceEndsAfterOneJob) {
  AgentOptions options;
  options.once = true;
  Queue(Lease(kWholeScript));
  RunningAgent agent(server_.address(), root_ / "work", options, false);
  EXPECT_TRUE(agent.Join().ok());
  EXPECT_EQ(Result().completed.size(), 1u);
}

TEST_F(AgentTest, NoDiskSpaceNoJobs) {
  AgentOptions options;
  options.min_free_disk_bytes = std::int64_t{1} << 60;
  options.max_idle = std::chrono::seconds(1);
  Queue(Lease(kWholeScript));
  RunningAgent agent(server_.address(), root_ / "work", options, false);
  EXPECT_TRUE(server_.WaitFor(
      [](const State& state) { return state.refusal.starts_with("too little free disk space"); }));
  EXPECT_TRUE(agent.Join().ok());
  EXPECT_FALSE(Result().AnyEnd());
  EXPECT_EQ(Result().queue.size(), 1u);
}

TEST_F(AgentTest, JobSeriesVanishTwoScrapesAfterTheEnd) {
  Queue(Lease("block\ntouch " + Path("here") + "\nwait " + Path("go") +
              "\nblock\nblock\nblock\nartifact\ncomplete\n"));
  RunningAgent& agent = Start();
  ASSERT_GT(WaitForTouch("here"), 0);
  ASSERT_TRUE(
      server_.WaitFor([](const State& state) { return state.last_progress.blocks_done() == 1; }));
  const std::string running = agent.metrics().Text();
  for (const char* line :
       {"quantry_worker_busy 1",
        "quantry_job_blocks_done{job_id=\"job-one\",tenant=\"acme\"} 1",
        "quantry_job_progress_ratio{job_id=\"job-one\",tenant=\"acme\"} 0.25",
        "quantry_job_block_loss{job_id=\"job-one\",tenant=\"acme\"} 0.5",
        "quantry_job_block_loss_before{job_id=\"job-one\",tenant=\"acme\"} 2",
        "quantry_job_stage{job_id=\"job-one\",tenant=\"acme\",stage=",
        "quantry_job_blocks{job_id=\"job-one\",tenant=\"acme\"} 4",
        "quantry_job_steps_done{job_id=\"job-one\",tenant=\"acme\"} 1",
        "quantry_job_steps{job_id=\"job-one\",tenant=\"acme\"} 4",
        "quantry_job_peak_memory_bytes{job_id=\"job-one\",tenant=\"acme\",memory=\"host\"} 4096",
        "quantry_job_rounding_stage{job_id=\"job-one\",tenant=\"acme\"} 3",
        "quantry_job_rounding_stages{job_id=\"job-one\",tenant=\"acme\"} 20",
        "quantry_job_rounding_stage_steps_done{job_id=\"job-one\",tenant=\"acme\"} 7",
        "quantry_job_rounding_stage_steps{job_id=\"job-one\",tenant=\"acme\"} 25",
        "quantry_job_soft_loss{job_id=\"job-one\",tenant=\"acme\"} 0.5",
        "quantry_job_hard_loss{job_id=\"job-one\",tenant=\"acme\"} 0.75",
        "quantry_job_hardened_ratio{job_id=\"job-one\",tenant=\"acme\"} 0.375",
        "quantry_job_flip_ratio{job_id=\"job-one\",tenant=\"acme\"} 0.125",
        "quantry_job_block_seconds{job_id=\"job-one\",tenant=\"acme\"} 0.25",
        "quantry_job_info{job_id=\"job-one\",tenant=\"acme\",model=\"model\",method=\"rtn\"} 1",
        "quantry_job_estimated_end_timestamp_seconds{job_id=\"job-one\",tenant=\"acme\"}"}) {
    EXPECT_NE(running.find(line), std::string::npos) << line << "\n" << running;
  }
  WriteFile(root_ / "go", "");
  ASSERT_TRUE(server_.WaitFor([](const State& state) { return state.AnyEnd(); }));
  ASSERT_TRUE(agent.End().ok());
  EXPECT_NE(agent.metrics().Text().find("job-one"), std::string::npos);
  EXPECT_NE(agent.metrics().Text().find("job-one"), std::string::npos);
  const std::string after = agent.metrics().Text();
  EXPECT_EQ(after.find("job-one"), std::string::npos) << after;
  EXPECT_NE(after.find("quantry_worker_busy 0"), std::string::npos);
  EXPECT_NE(after.find("quantry_worker_engine_exits_total{signal=\"none\"} 1"), std::string::npos);
}

}  // namespace
}  // namespace quantry::agent
