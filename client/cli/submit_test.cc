// submit, quote and watch against a server that misbehaves on purpose.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "client/cli/testing/fake_server.h"
#include "client/cli/testing/run.h"
#include "common/digest.h"
#include "common/trace_context.h"

namespace quantry::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

v1::QuantizationJob Job(v1::JobState state) {
  v1::QuantizationJob job;
  job.set_name(kJob);
  job.set_state(state);
  return job;
}

v1::WatchQuantizationJobResponse Snapshot(v1::JobState state, int64_t sequence) {
  v1::WatchQuantizationJobResponse message;
  *message.mutable_snapshot() = Job(state);
  message.mutable_snapshot()->set_last_sequence(sequence);
  return message;
}

v1::WatchQuantizationJobResponse Block(int64_t sequence, int index) {
  v1::WatchQuantizationJobResponse message;
  message.mutable_event()->set_sequence(sequence);
  v1::BlockReport* block = message.mutable_event()->mutable_block_done();
  block->set_index(index);
  block->set_seconds(1.5);
  block->set_loss_rtn(0.02);
  block->set_loss_final(0.01);
  return message;
}

v1::WatchQuantizationJobResponse End(v1::JobState state) {
  v1::WatchQuantizationJobResponse message;
  *message.mutable_end()->mutable_job() = Job(state);
  return message;
}

v1::QuantizationJob Succeeded() {
  v1::QuantizationJob job = Job(v1::JOB_STATE_SUCCEEDED);
  job.set_artifact("tenants/default/artifacts/u");
  v1::JobResult* result = job.mutable_result();
  result->mutable_quality()->mutable_perplexity()->set_dense(4.2);
  result->mutable_quality()->mutable_perplexity()->set_quantized(4.3);
  result->mutable_bits()->set_linears(4.25);
  result->mutable_bits()->set_file(6.5);
  v1::OutputSummary* output = result->add_outputs();
  output->set_format("compressed-tensors");
  output->set_path("compressed-tensors");
  output->set_bytes(3'000'000'000);
  output->set_compatibility("vllm");
  result->mutable_timing()->set_queue_s(0.5);
  result->mutable_timing()->set_run_s(12);
  result->mutable_timing()->add_blocks_s(1.5);
  result->set_peak_rss_bytes(300'000'000);
  result->set_artifact_uri("file:///a");
  return job;
}

class SubmitTest : public testing::Test {
 protected:
  SubmitTest() {
    folder.Write("model/config.json", "{}");
    folder.Write("model/model.safetensors", std::string(1'500'000, 'w'));
    folder.Write("model/tokenizer.json", "{\"t\":1}");
    folder.Write("model/modeling_custom.py", "import os");
    folder.Write("model/pytorch_model.bin", "pickle");
    folder.Write("train.txt", "Once upon a time");
    folder.Write("test.txt", "there was a fox");
  }

  std::vector<std::string> Arguments(const std::vector<std::string>& more) {
    std::vector<std::string> all = {"submit",
                                    folder / "model",
                                    "--method",
                                    "awq",
                                    "--calibration",
                                    folder / "train.txt",
                                    "--evaluation",
                                    folder / "test.txt",
                                    "--id",
                                    "my-job",
                                    "--server",
                                    server.address(),
                                    "--group-size",
                                    "-1",
                                    "--symmetric=false"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  FakeServer server;
  TempFolder folder;
};

TEST_F(SubmitTest, UploadsTheModelAndNothingElse) {
  const CliRun run =
      RunForTest(Arguments({"--label", "team=a", "--label", "run=7", "--output", "json"}));
  ASSERT_EQ(run.code, 0) << run.err;
  ASSERT_EQ(server.creates.size(), 1u);
  const auto& request = server.creates[0];
  std::vector<std::string> names;
  for (const auto& file : request.quantization_job().spec().model().blobs().files()) {
    names.push_back(file.path());
    EXPECT_EQ(server.blobs.count(file.sha256()), 1u) << file.path();
  }
  EXPECT_THAT(names, ElementsAre("config.json", "model.safetensors", "tokenizer.json"));
  EXPECT_EQ(server.blobs.size(), 5u);
  const v1::JobSpec& spec = request.quantization_job().spec();
  EXPECT_EQ(spec.calibration().source().blob().sha256(), Sha256Hex("Once upon a time"));
  EXPECT_EQ(spec.evaluation().source().blob().path(), "test.txt");
  EXPECT_EQ(spec.method().awq().grid().group_size(), -1);
  EXPECT_EQ(request.quantization_job().labels().at("run"), "7");
  EXPECT_EQ(run.json()["name"], kJob);
  EXPECT_EQ(run.json()["state"], "QUEUED");
  EXPECT_EQ(run.json()["request_id"], request.request_id());
  EXPECT_THAT(request.request_id(), testing::SizeIs(36));
}

TEST_F(SubmitTest, ARecipeContradictedIsRefusedBeforeTheUpload) {
  v1::MethodDescription* method = server.methods.add_methods();
  method->set_name("tesseraq");
  method->add_bits(2);
  method->add_bits(3);
  v1::RecipeDescription* recipe = method->add_recipes();
  recipe->set_name("tesseraq-w2");
  recipe->set_bits(2);
  recipe->set_group_size(-1);
  const std::vector<std::string> arguments = {
      "submit",      folder / "model", "--method",           "tesseraq", "--recipe",
      "tesseraq-w2", "--calibration",  folder / "train.txt", "--server", server.address()};
  EXPECT_EQ(RunForTest(arguments).code, 0);
  server.blobs.clear();
  std::vector<std::string> wrong = arguments;
  wrong.insert(wrong.end(), {"--bits", "3"});
  const CliRun run = RunForTest(wrong);
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("wanted 2, which recipe tesseraq-w2 has, or nothing, got 3"));
  EXPECT_THAT(run.err, HasSubstr("quantization_job.spec.method.tesseraq.grid.bits"));
  EXPECT_TRUE(server.blobs.empty());
  const CliRun methods = RunForTest({"methods", "--server", server.address()});
  EXPECT_THAT(methods.out, HasSubstr("tesseraq-w2  2 bits, per channel"));
}

TEST_F(SubmitTest, TheEngineGetsItsTimeToTellItsMethods) {
  server.engine_takes = std::chrono::milliseconds(300);
  const CliRun methods = RunForTest({"methods", "--server", server.address(), "--timeout", "0.05"});
  EXPECT_EQ(methods.code, 0) << methods.err;
}

TEST_F(SubmitTest, TheTraceIsTheEnvironmentsOrANewOne) {
  const std::string ids = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-";
  const auto sent = [&](const std::vector<std::string>& more, const std::string& variable) {
    const CliRun run = RunForTest(Arguments(more), {{"TRACEPARENT", variable}});
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.err.find("TRACEPARENT is no") != std::string::npos, variable == "nonsense");
    return server.traceparents.back();
  };
  EXPECT_EQ(sent({}, ids + "01"), ids + "01");
  EXPECT_EQ(sent({"--trace"}, ids + "00"), ids + "01");
  for (const char* none : {"", "nonsense"}) {
    const auto made = ParseTraceparent(sent({}, none));
    ASSERT_TRUE(made.has_value());
    EXPECT_FALSE(made->sampled);
  }
  EXPECT_TRUE(ParseTraceparent(sent({"--trace"}, ""))->sampled);
}

TEST_F(SubmitTest, ASecondSubmitSendsNoBytes) {
  ASSERT_EQ(RunForTest(Arguments({})).code, 0);
  const size_t uploads = server.upload_offsets.size();
  const CliRun again = RunForTest(Arguments({}));
  ASSERT_EQ(again.code, 0);
  EXPECT_EQ(server.upload_offsets.size(), uploads);
  EXPECT_THAT(again.err, HasSubstr("the server has all 5 files"));
}

TEST_F(SubmitTest, AnUploadThatAnotherCallHoldsIsWaitedFor) {
  struct Case {
    const char* name;
    int refusals;
    size_t step;
    int code;
  };
  const std::string weights(1'500'000, 'w');
  const Case cases[] = {{"the other one ends it, slowly", 1000, 20'000, 0},
                        {"the other one is dead; its lock goes", 30, 0, 0},
                        {"its lock never goes", 1000, 0, 6}};
  for (const Case& test : cases) {
    FakeServer busy;
    busy.held_upload = {test.refusals, weights, test.step};
    std::vector<std::string> arguments = Arguments({});
    std::replace(arguments.begin(), arguments.end(), server.address(), busy.address());
    const CliRun run = RunForTest(arguments);
    EXPECT_EQ(run.code, test.code) << test.name << run.err;
    EXPECT_THAT(run.err, HasSubstr("waiting: model.safetensors: another call")) << test.name;
    EXPECT_LT(run.slept, std::chrono::minutes(15)) << test.name;
    EXPECT_GT(run.slept, std::chrono::minutes(1)) << test.name;
    if (test.code != 0) continue;
    EXPECT_EQ(busy.blobs.at(Sha256Hex(weights)), weights) << test.name;
  }
}

TEST_F(SubmitTest, AnAnswerMayBeLargerThanGrpcsDefault) {
  for (int i = 0; i < 4; ++i) {
    server.listed.push_back(Job(v1::JOB_STATE_QUEUED));
    server.listed.back().set_state_reason(std::string(3 << 20, 'x'));
  }
  const CliRun run = RunForTest({"list", "--limit", "0", "--quiet", "--server", server.address()});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.out, "my-job\nmy-job\nmy-job\nmy-job\n");
}

TEST_F(SubmitTest, AnUploadThatAServerShortOfMemoryEndedGoesOn) {
  server.upload_breaks_after = 600'000;
  server.upload_breaks_with = grpc::RESOURCE_EXHAUSTED;  // as gRPC says it, without a reason
  const CliRun run = RunForTest(Arguments({}));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(server.blobs.at(Sha256Hex(std::string(1'500'000, 'w'))).size(), 1'500'000u);
}

TEST_F(SubmitTest, ABrokenUploadGoesOnWhereItStopped) {
  for (const grpc::StatusCode code : {grpc::UNAVAILABLE, grpc::UNKNOWN, grpc::INTERNAL}) {
    folder.Write("model/model.safetensors", std::string(1'500'000 + code, 'w'));
    server.upload_offsets.clear();
    server.upload_breaks_after = 600'000;
    server.upload_breaks_with = code;
    const CliRun run = RunForTest(Arguments({}));
    ASSERT_EQ(run.code, 0) << code << run.err;
    EXPECT_THAT(server.upload_offsets, testing::Contains(testing::Gt(500'000)));
    EXPECT_THAT(server.blobs,
                testing::Contains(testing::Key(Sha256Hex(std::string(1'500'000 + code, 'w')))));
  }
}

TEST_F(SubmitTest, CollectedBlobsAreSentAgain) {
  server.create_status = RpcError(grpc::FAILED_PRECONDITION, "SOURCE_MISSING", "gone");
  const CliRun run = RunForTest(Arguments({}));
  EXPECT_EQ(run.code, 0) << run.err;
  ASSERT_EQ(server.creates.size(), 2u);
  EXPECT_EQ(server.creates[0].request_id(), server.creates[1].request_id());
}

// A server that drains for too long cancels what is still open.
TEST_F(SubmitTest, ACallThatADrainingServerCutOffIsRepeated) {
  server.create_status = {grpc::CANCELLED, "CANCELLED"};
  server.creates_refused = 3;
  const CliRun run = RunForTest(Arguments({}));
  EXPECT_EQ(run.code, 0) << run.err;
  ASSERT_EQ(server.creates.size(), 4u);
  EXPECT_EQ(server.creates[0].request_id(), server.creates[3].request_id());
  EXPECT_GT(run.slept, std::chrono::milliseconds(0));
}

TEST_F(SubmitTest, AServerThatKeepsCuttingCallsOffIsUnavailable) {
  server.create_status = {grpc::CANCELLED, "CANCELLED"};
  server.creates_refused = 100;
  const CliRun run = RunForTest(Arguments({"--output", "json"}));
  EXPECT_EQ(run.code, 7) << run.err;
  EXPECT_EQ(server.creates.size(), 4u);
  const nlohmann::json error = run.json()["error"];
  EXPECT_EQ(error["code"], "UNAVAILABLE");
  EXPECT_EQ(error["metadata"].value("request_id", ""), server.creates.back().request_id());
  EXPECT_THAT(run.err, HasSubstr("shutting down"));
  EXPECT_THAT(run.err, HasSubstr("--request-id " + server.creates.back().request_id()));
}

TEST_F(SubmitTest, ASubmitThatWasRefusedMadeNoJob) {
  server.create_status = RpcError(grpc::RESOURCE_EXHAUSTED, "QUOTA_QUEUED", "too many");
  const CliRun run = RunForTest(Arguments({"--output", "json"}));
  EXPECT_EQ(run.code, 6) << run.err;
  EXPECT_FALSE(run.json()["error"]["metadata"].contains("request_id")) << run.out;
  EXPECT_THAT(run.err, testing::Not(HasSubstr("--request-id")));
}

TEST_F(SubmitTest, ARetryWithoutAnAnswerTellsItsRequestId) {
  const CliRun run = RunForTest({"retry", "my-job", "--server", "127.0.0.1:1", "--output", "json"});
  EXPECT_EQ(run.code, 7) << run.err;
  EXPECT_EQ(run.json()["error"]["metadata"].value("request_id", "").size(), 36u) << run.out;
}

// The job has succeeded all the same.
TEST_F(SubmitTest, ADownloadThatFailsPrintsTheJob) {
  server.Publish(kJob, {{"config.json", "{}"}});
  server.watch_calls = {{{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  folder.Write("out/config.json", "mine");
  const CliRun run = RunForTest(
      Arguments({"--wait", "--download", folder / "out", "--output", "json", "--quiet"}));
  EXPECT_EQ(run.code, 2) << run.err;
  EXPECT_EQ(run.json().value("name", ""), kJob) << run.out;
  EXPECT_EQ(run.json().value("state", ""), "SUCCEEDED");
  EXPECT_FALSE(run.json().contains("downloaded_to"));
  EXPECT_THAT(run.err, HasSubstr("out/config.json\" is already there"));
  EXPECT_THAT(run.err, HasSubstr("`quantry pull my-job " + (folder / "out") + " --force`"));
  EXPECT_EQ(folder.Read("out/config.json"), "mine");
}

TEST_F(SubmitTest, WhereItWasDownloadedToIsToldOnceItWas) {
  server.watch_calls = {{{End(v1::JOB_STATE_FAILED)}, grpc::Status::OK}};
  server.jobs[kJob] = Job(v1::JOB_STATE_FAILED);
  const std::vector<std::string> arguments =
      Arguments({"--download", folder / "out", "--output", "json"});
  CliRun run = RunForTest(arguments);
  EXPECT_EQ(run.code, 1) << run.err;
  EXPECT_FALSE(run.json().contains("downloaded_to")) << run.out;
  server.Publish(kJob, {{"config.json", "{}"}});
  server.watch_calls = {{{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  run = RunForTest(arguments);
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json().value("downloaded_to", ""), folder / "out");
  EXPECT_EQ(folder.Read("out/config.json"), "{}");
}

TEST_F(SubmitTest, AFolderThatTakesNoDownloadIsRefusedBeforeTheSubmit) {
  folder.Write("file", "");
  folder.Write("other/manifest.json", "{}");
  const struct {
    std::string into;
    std::string says;
  } kCases[] = {
      {folder / "file", "file\": Not a directory"},
      {folder / "file/below", "below\": Not a directory"},
      {folder / std::string(300, 'x'), "File name too long"},
      {folder / "other", "other/manifest.json\" is already there and is another artifact's"},
      {folder / "other", "`quantry pull my-job " + (folder / "other") + " --force`"},
  };
  for (const auto& c : kCases) {
    const CliRun run = RunForTest(Arguments({"--download", c.into}));
    EXPECT_EQ(run.code, 2) << run.err;
    EXPECT_THAT(run.err, HasSubstr(c.says));
    EXPECT_TRUE(server.creates.empty());
    EXPECT_TRUE(server.blobs.empty());
  }
}

// Its own artifact may lie there.
TEST_F(SubmitTest, TheSameRequestMayDownloadIntoItsFolderAgain) {
  server.Publish(kJob, {{"config.json", "{}"}});
  server.watch_calls = {{{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  const std::vector<std::string> arguments =
      Arguments({"--download", folder / "out", "--request-id",
                 "0a1b2c3d-1111-4222-8333-444455556666", "--output", "json"});
  for (int tries = 1; tries <= 2; ++tries) {
    const CliRun run = RunForTest(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.json().value("downloaded_to", ""), folder / "out");
  }
}

TEST_F(SubmitTest, AWatchOfAJobThatGoesOnLooksAtTheFolderFirst) {
  folder.Write("other/manifest.json", "{}");
  server.jobs[kJob] = Job(v1::JOB_STATE_RUNNING);
  server.watch_calls = {{{End(v1::JOB_STATE_FAILED)}, grpc::Status::OK}};
  const std::vector<std::string> arguments = {"watch",          "my-job",   "--download",
                                              folder / "other", "--server", server.address()};
  const CliRun run = RunForTest(arguments);
  EXPECT_EQ(run.code, 2) << run.err;
  EXPECT_THAT(run.err, HasSubstr("`quantry pull my-job "));
  EXPECT_TRUE(server.watched_after.empty());
  server.jobs[kJob] = Job(v1::JOB_STATE_FAILED);
  EXPECT_EQ(RunForTest(arguments).code, 1) << "there is nothing to download";
}

TEST_F(SubmitTest, AWaitThatBreaksNamesTheJob) {
  server.watch_calls = {{{}, RpcError(grpc::PERMISSION_DENIED, "PERMISSION_DENIED", "no more")}};
  const CliRun run = RunForTest(Arguments({"--wait", "--output", "json", "--quiet"}));
  EXPECT_EQ(run.code, 5) << run.err;
  EXPECT_EQ(run.json()["error"]["metadata"].value("job", ""), kJob) << run.out;
}

TEST_F(SubmitTest, WaitSurvivesABrokenConnectionWithoutGapOrRepeat) {
  server.watch_calls = {
      {{Snapshot(v1::JOB_STATE_RUNNING, 3), Block(4, 0)}, {grpc::UNAVAILABLE, "reset"}},
      {{}, {grpc::UNAVAILABLE, "refused"}},
      {{Snapshot(v1::JOB_STATE_RUNNING, 5), Block(4, 0), Block(5, 1), End(v1::JOB_STATE_SUCCEEDED)},
       grpc::Status::OK}};
  server.jobs[kJob] = Succeeded();
  const CliRun run = RunForTest(Arguments({"--wait", "--output", "json"}));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(server.watched_after, ElementsAre(0, 4, 4));
  EXPECT_THAT(run.err, HasSubstr("my-job: block 1 done"));
  const size_t first = run.err.find("block 0 done");
  EXPECT_EQ(run.err.find("block 0 done", first + 1), std::string::npos) << run.err;
  EXPECT_THAT(run.err, HasSubstr("connected again"));
}

TEST_F(SubmitTest, WaitLeavesAServerWithoutItsStoreForANewConnection) {
  server.watch_calls = {{{Snapshot(v1::JOB_STATE_RUNNING, 3)}, {grpc::UNAVAILABLE, "reset"}},
                        {{}, RpcError(grpc::UNAVAILABLE, "STORE_UNAVAILABLE", "no database")},
                        {{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  server.jobs[kJob] = Succeeded();
  ASSERT_EQ(RunForTest(Arguments({"--wait", "--output", "json"})).code, 0);
  ASSERT_EQ(server.watched_from.size(), 3u);
  EXPECT_EQ(server.watched_from[0], server.watched_from[1]) << "a stream may break on a good one";
  EXPECT_NE(server.watched_from[1], server.watched_from[2]);
}

TEST_F(SubmitTest, ADeleteThatBreaksOffTellsWhatIsGone) {
  server.jobs[kJob] = Succeeded();
  const std::vector<std::string> arguments = {"--server", server.address(), "--output", "json",
                                              "delete",   "my-job",         "gone"};
  const CliRun run = RunForTest(arguments);
  EXPECT_EQ(run.code, 4) << run.err;
  EXPECT_EQ(run.json()["error"]["metadata"]["deleted"], kJob) << run.out;
  EXPECT_EQ(RunForTest(arguments).json()["error"]["metadata"].contains("deleted"), false);
}

TEST_F(SubmitTest, AMissingJobIsNotCalledDeleted) {
  server.jobs[kJob] = Succeeded();
  std::vector<std::string> arguments = {"delete",          "my-job",   "gone-job",
                                        "--allow-missing", "--server", server.address()};
  CliRun run = RunForTest(arguments);
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.out, std::string("deleted ") + kJob +
                         "\nnothing named tenants/default/quantizationJobs/gone-job\n");
  server.jobs[kJob] = Succeeded();
  arguments.insert(arguments.end(), {"--output", "json"});
  EXPECT_EQ(RunForTest(arguments).json()["deleted"], nlohmann::json::array({kJob}));
  EXPECT_EQ(RunForTest(arguments).json()["deleted"], nlohmann::json::array());
  server.delete_status = RpcError(grpc::NOT_FOUND, "JOB_NOT_FOUND",
                                  "nothing named that for ann, whose tenant is acme");
  run = RunForTest(arguments);
  EXPECT_EQ(run.code, 4) << run.out;
  EXPECT_THAT(run.err, HasSubstr("add --tenant acme"));
}

TEST_F(SubmitTest, TheJsonThatEndsAWait) {
  server.watch_calls = {{{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  server.jobs[kJob] = Succeeded();
  const nlohmann::json json = RunForTest(Arguments({"--wait", "--output", "json"})).json();
  EXPECT_EQ(json["name"], kJob);
  EXPECT_EQ(json["state"], "SUCCEEDED");
  EXPECT_EQ(json["quality"]["perplexity"]["dense"], 4.2);
  EXPECT_EQ(json["quality"]["perplexity"]["quantized"], 4.3);
  EXPECT_EQ(json["bits"]["linears"], 4.25);
  EXPECT_EQ(json["bits"]["file"], 6.5);
  EXPECT_EQ(json["artifact"]["uri"], "file:///a");
  EXPECT_EQ(json["artifact"]["name"], "tenants/default/artifacts/u");
  EXPECT_EQ(json["outputs"][0]["format"], "compressed-tensors");
  EXPECT_EQ(json["outputs"][0]["bytes"], 3'000'000'000);
  EXPECT_EQ(json["outputs"][0]["compatibility"], "vllm");
  EXPECT_EQ(json["timing"]["queue_s"], 0.5);
  EXPECT_EQ(json["timing"]["blocks_s"], nlohmann::json::array({1.5}));
  EXPECT_EQ(json["peak_rss_bytes"], 300'000'000);
}

TEST_F(SubmitTest, AFailedJobSaysWhyAndExitsOne) {
  server.watch_calls = {{{End(v1::JOB_STATE_FAILED)}, grpc::Status::OK}};
  v1::QuantizationJob& job = server.jobs[kJob];
  job = Job(v1::JOB_STATE_FAILED);
  google::rpc::Status error;
  ASSERT_TRUE(error.ParseFromString(
      RpcError(grpc::INVALID_ARGUMENT, "INVALID_CHECKPOINT", "shard 2 is missing", {{"file", "x"}})
          .error_details()));
  *job.mutable_error() = error;
  const CliRun run = RunForTest(Arguments({"--wait", "--output", "json"}));
  EXPECT_EQ(run.code, 1);
  EXPECT_EQ(run.json()["state"], "FAILED");
  EXPECT_EQ(run.json()["error"]["reason"], "INVALID_CHECKPOINT");
  EXPECT_EQ(run.json()["error"]["message"], "shard 2 is missing");
  EXPECT_EQ(run.json()["error"]["metadata"]["file"], "x");
  EXPECT_THAT(run.err, HasSubstr("shard 2 is missing"));
}

TEST_F(SubmitTest, ACancelledJobExitsThree) {
  server.watch_calls = {{{End(v1::JOB_STATE_CANCELLED)}, grpc::Status::OK}};
  server.jobs[kJob] = Job(v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(RunForTest(Arguments({"--wait"})).code, 3);
}

TEST_F(SubmitTest, AServerThatStaysAwayIsGivenUpAfterTwoMinutes) {
  server.watch_calls = {{{Snapshot(v1::JOB_STATE_RUNNING, 3)}, {grpc::UNAVAILABLE, "reset"}},
                        {{}, {grpc::UNAVAILABLE, "refused"}}};
  const CliRun run = RunForTest(Arguments({"--wait"}));
  EXPECT_EQ(run.code, 7);
  EXPECT_GE(run.slept, std::chrono::minutes(2));
  EXPECT_THAT(run.err, HasSubstr("quantry watch my-job"));
}

TEST_F(SubmitTest, ADrainingServersReasonIsNoEnd) {
  server.watch_calls = {
      {{Snapshot(v1::JOB_STATE_RUNNING, 3)}, RpcError(grpc::UNAVAILABLE, "SERVER_DRAINING", "bye")},
      {{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  server.jobs[kJob] = Succeeded();
  EXPECT_EQ(RunForTest(Arguments({"--wait"})).code, 0);
}

TEST_F(SubmitTest, CompactedEventsStartFromASnapshot) {
  server.watch_calls = {
      {{Snapshot(v1::JOB_STATE_RUNNING, 3)}, {grpc::UNAVAILABLE, "reset"}},
      {{}, RpcError(grpc::OUT_OF_RANGE, "EVENTS_COMPACTED", "older events are gone")},
      {{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  server.jobs[kJob] = Succeeded();
  EXPECT_EQ(RunForTest(Arguments({"--wait"})).code, 0);
  EXPECT_THAT(server.watched_after, ElementsAre(0, 3, 0));
}

TEST_F(SubmitTest, AWaitTimeoutLeavesTheJobRunning) {
  server.watch_calls = {{{Snapshot(v1::JOB_STATE_RUNNING, 3)}, {grpc::UNAVAILABLE, "reset"}}};
  const CliRun run = RunForTest(Arguments({"--wait", "--wait-timeout", "5", "--output", "json"}));
  EXPECT_EQ(run.code, 8);
  EXPECT_EQ(run.json()["state"], "RUNNING");
  EXPECT_THAT(run.err, HasSubstr("quantry cancel my-job"));
}

TEST_F(SubmitTest, AWaitTimeoutAloneWaits) {
  server.jobs[kJob] = Job(v1::JOB_STATE_RUNNING);
  const std::vector<std::vector<std::string>> commands = {
      Arguments({"--wait-timeout", "5"}),
      {"retry", "my-job", "--wait-timeout", "5", "--server", server.address()}};
  for (const std::vector<std::string>& command : commands) {
    server.watch_calls = {{{Snapshot(v1::JOB_STATE_RUNNING, 3)}, {grpc::UNAVAILABLE, "reset"}}};
    EXPECT_EQ(RunForTest(command).code, 8) << command[0];
  }
}

TEST_F(SubmitTest, MapsComeInTheOrderOfTheirKeys) {
  v1::QuantizationJob job = Job(v1::JOB_STATE_QUEUED);
  std::string sorted;
  for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) {
    (*job.mutable_labels())[name] = "1";
    sorted += name;
  }
  server.jobs[kJob] = job;
  const CliRun run =
      RunForTest({"get", "my-job", "--server", server.address(), "--output", "json"});
  const auto json = nlohmann::ordered_json::parse(run.out);
  std::string seen;
  for (const auto& [name, value] : json.at("labels").items()) seen += name;
  EXPECT_EQ(seen, sorted);
}

TEST_F(SubmitTest, ADeletedJobIsNotFound) {
  server.watch_calls = {{{}, RpcError(grpc::NOT_FOUND, "JOB_NOT_FOUND", "no such job")}};
  EXPECT_EQ(RunForTest(Arguments({"--wait"})).code, 4);
}

TEST_F(SubmitTest, ServerErrorsKeepReasonFieldsAndExitCode) {
  const struct {
    grpc::Status status;
    int code;
  } kCases[] = {
      {RpcError(grpc::INVALID_ARGUMENT, "INVALID_SPEC", "bad"), 2},
      {RpcError(grpc::ALREADY_EXISTS, "JOB_ID_TAKEN", "taken"), 2},
      {RpcError(grpc::PERMISSION_DENIED, "SOURCE_FORBIDDEN", "no"), 5},
      {RpcError(grpc::UNAUTHENTICATED, "UNAUTHENTICATED", "who"), 5},
      {RpcError(grpc::RESOURCE_EXHAUSTED, "RESOURCE_LIMIT", "full"), 6},
      {RpcError(grpc::NOT_FOUND, "JOB_NOT_FOUND", "none"), 4},
      {RpcError(grpc::INTERNAL, "INTERNAL", "bug"), 1},
  };
  for (const auto& c : kCases) {
    server.creates.clear();
    server.create_status = c.status;
    const CliRun run = RunForTest(Arguments({"--output", "json"}));
    EXPECT_EQ(run.code, c.code) << run.err;
    EXPECT_EQ(run.json()["error"]["message"], c.status.error_message());
    EXPECT_THAT(run.err, HasSubstr(run.json()["error"]["reason"].get<std::string>()));
  }
}

TEST_F(SubmitTest, WhatTheServerRefusesAnywayIsNotUploaded) {
  const struct {
    std::vector<std::string> arguments;
    std::string says;
  } kCases[] = {
      {Arguments({"--bits", "5"}), "bits: awq takes 2, 3, 4, 8, got 5"},
      {{"submit", folder / "model", "--method", "awq", "--server", server.address()},
       "calibration"},
  };
  for (const auto& c : kCases) {
    const CliRun run = RunForTest(c.arguments);
    EXPECT_EQ(run.code, 2);
    EXPECT_THAT(run.err, HasSubstr(c.says));
    EXPECT_THAT(run.err, HasSubstr("INVALID_SPEC"));
  }
  EXPECT_TRUE(server.blobs.empty());
}

TEST_F(SubmitTest, AQuoteWithProblemsExitsTwo) {
  server.quote.set_blocks(5);
  server.quote.set_host_memory_bytes(12345);
  std::vector<std::string> arguments = {"quote",    folder / "model", "--method", "rtn",
                                        "--server", server.address(), "--output", "json"};
  CliRun run = RunForTest(arguments);
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json()["blocks"], 5);
  EXPECT_EQ(run.json()["host_memory_bytes"], 12345);
  EXPECT_TRUE(server.quotes.back().validate_only());
  server.quote.add_problems("down_proj is 172 wide");
  run = RunForTest(arguments);
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.out, HasSubstr("172"));
}

TEST_F(SubmitTest, WhatTheModelCannotDoIsRefusedByAQuoteFirst) {
  server.quote.add_problems("INVALID_SPEC: down_proj is 172 wide");
  server.quote.add_problems("gate_proj too");
  const CliRun run = RunForTest(Arguments({"--output", "json", "--reuse-result"}));
  EXPECT_EQ(run.code, 2) << run.err;
  EXPECT_EQ(run.json()["error"]["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(run.json()["error"]["reason"], "INVALID_SPEC");
  EXPECT_EQ(run.json()["error"]["message"],
            "the job could not run: INVALID_SPEC: down_proj is 172 wide; gate_proj too");
  EXPECT_TRUE(server.creates.empty());
  ASSERT_EQ(server.quotes.size(), 1u);
  EXPECT_TRUE(server.quotes[0].validate_only());
  EXPECT_THAT(server.quotes[0].request_id(), testing::IsEmpty());
}

TEST_F(SubmitTest, TheCheckAsksForTheJobThatIsSubmitted) {
  EXPECT_EQ(RunForTest(Arguments({})).code, 0);
  ASSERT_EQ(server.quotes.size(), 1u);
  ASSERT_EQ(server.creates.size(), 1u);
  EXPECT_FALSE(server.creates[0].validate_only());
  EXPECT_EQ(server.quotes[0].quantization_job().SerializeAsString(),
            server.creates[0].quantization_job().SerializeAsString());
}

TEST_F(SubmitTest, ASpecThatTheQuoteRefusesIsRefused) {
  server.quote_status = RpcError(grpc::INVALID_ARGUMENT, "INVALID_SPEC", "group_size: got 7");
  const CliRun run = RunForTest(Arguments({}));
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("group_size: got 7"));
  EXPECT_TRUE(server.creates.empty());
}

TEST_F(SubmitTest, WithoutAQuoteTheJobIsSubmitted) {
  const grpc::Status kStatuses[] = {
      RpcError(grpc::UNAVAILABLE, "ENGINE_UNAVAILABLE", "no engine"),
      RpcError(grpc::UNIMPLEMENTED, "UNIMPLEMENTED_RPC", "not here"),
      RpcError(grpc::NOT_FOUND, "SOURCE_MISSING", "no engine"),
      {grpc::UNIMPLEMENTED, "an old server"},
      {grpc::CANCELLED, "cut off"},
  };
  for (const grpc::Status& status : kStatuses) {
    server.creates.clear();
    server.quote_status = status;
    const CliRun run = RunForTest(Arguments({}));
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(server.creates.size(), 1u) << status.error_message();
    EXPECT_THAT(run.err, Not(HasSubstr(status.error_message())));
  }
}

TEST_F(SubmitTest, ASlowQuoteIsNotWaitedFor) {
  server.quote_takes = std::chrono::minutes(2);
  const CliRun run = RunForTest(Arguments({"--output", "json"}));
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(server.creates.size(), 1u);
  EXPECT_EQ(run.json()["name"], kJob);
  EXPECT_THAT(run.err, HasSubstr("the check of the job was left out: the server at "));
  EXPECT_THAT(run.err, HasSubstr("did not answer within 5 s\n"));
}

TEST_F(SubmitTest, WithoutTheCheckThereIsNoQuote) {
  server.quote.add_problems("down_proj is 172 wide");
  EXPECT_EQ(RunForTest(Arguments({"--no-check"})).code, 0);
  EXPECT_TRUE(server.quotes.empty());
  EXPECT_EQ(server.creates.size(), 1u);
}

// The server fetches nothing for a quote.
TEST_F(SubmitTest, ModelsToBeFetchedAreNotQuoted) {
  for (const char* uri : {"hf://org/model", "s3://bucket/model"}) {
    server.creates.clear();
    const CliRun run =
        RunForTest({"submit", "--model-uri", uri, "--method", "rtn", "--server", server.address()});
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(server.creates.size(), 1u);
  }
  EXPECT_TRUE(server.quotes.empty());
}

TEST_F(SubmitTest, NoServerIsSevenAndSaysWhereItLooked) {
  const CliRun run = RunForTest({"get", "my-job"}, {{"QUANTRY_SERVER", "127.0.0.1:1"}});
  EXPECT_EQ(run.code, 7);
  EXPECT_THAT(run.err, HasSubstr("127.0.0.1:1 (QUANTRY_SERVER)"));
  EXPECT_THAT(run.err, HasSubstr("next:"));
}

TEST_F(SubmitTest, AnAddressFileIsFoundAndFollowedToANewPort) {
  FakeServer restarted;
  const std::string file = folder.Write("state/quantry/run/tenant", server.address() + "\n");
  server.watch_calls = {{{Snapshot(v1::JOB_STATE_RUNNING, 3)}, {grpc::UNAVAILABLE, "reset"}}};
  server.jobs[kJob] = Job(v1::JOB_STATE_RUNNING);
  restarted.watch_calls = {{{End(v1::JOB_STATE_SUCCEEDED)}, grpc::Status::OK}};
  restarted.jobs[kJob] = Succeeded();
  std::ostringstream out;
  std::ostringstream err;
  Environment env{.out = out, .err = err};
  env.variable = [&](std::string_view name) {
    return name == "XDG_STATE_HOME" ? folder / "state" : std::string();
  };
  // The server comes back on another port while the CLI waits.
  env.sleep = [&](std::chrono::milliseconds) {
    folder.Write("state/quantry/run/tenant", restarted.address() + "\n");
  };
  EXPECT_EQ(RunCli({"watch", "my-job"}, env), 0) << err.str();
  EXPECT_THAT(restarted.watched_after, ElementsAre(3));
}

TEST_F(SubmitTest, ListPagesThroughAndKeepsItsFilter) {
  for (int i = 0; i < 5; ++i) {
    v1::QuantizationJob job = Job(v1::JOB_STATE_QUEUED);
    job.set_name("tenants/default/quantizationJobs/job-" + std::to_string(i));
    server.listed.push_back(job);
  }
  CliRun run = RunForTest({"list", "--state", "RUNNING", "--label", "a=b\"c", "--limit", "0",
                           "--server", server.address(), "--output", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json().size(), 5u);
  ASSERT_EQ(server.lists.size(), 3u);
  EXPECT_EQ(server.lists[2].filter(), "state = RUNNING AND labels.a = \"b\\\"c\"");
  run = RunForTest({"list", "--limit", "3", "--quiet", "--server", server.address()});
  EXPECT_EQ(run.out, "job-0\njob-1\njob-2\n");
  run = RunForTest({"list", "--limit", "3", "--server", server.address()});
  EXPECT_THAT(run.err, HasSubstr("--limit 0"));
}

TEST_F(SubmitTest, WorkersOfAllPagesAreListed) {
  CliRun run = RunForTest({"workers", "--server", server.address(), "--output", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  for (int i = 0; i < 5; ++i) {
    server.workers.emplace_back().mutable_worker()->set_worker_id("gpu-" + std::to_string(i));
  }
  run = RunForTest({"workers", "--server", server.address(), "--output", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  ASSERT_EQ(run.json().size(), 5u);
  EXPECT_EQ(run.json()[4]["worker"]["worker_id"], "gpu-4");
  run = RunForTest({"workers", "--server", server.address()});
  EXPECT_THAT(run.out, testing::AllOf(HasSubstr("gpu-0"), HasSubstr("gpu-4")));
}

TEST_F(SubmitTest, RetrySendsARequestIdAndCanWait) {
  server.jobs[kJob] = Job(v1::JOB_STATE_FAILED);
  CliRun run = RunForTest(
      {"retry", "my-job", "--from-start", "--server", server.address(), "--output", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.json()["state"], "QUEUED");
  ASSERT_EQ(server.retries.size(), 1u);
  EXPECT_TRUE(server.retries[0].from_start());
  EXPECT_EQ(server.retries[0].request_id().size(), 36u);
  run = RunForTest({"retry", "no-such-job", "--server", server.address()});
  EXPECT_EQ(run.code, 4);
}

TEST_F(SubmitTest, UpdateChangesOnlyWhatIsAsked) {
  v1::QuantizationJob job = Job(v1::JOB_STATE_QUEUED);
  (*job.mutable_labels())["keep"] = "1";
  (*job.mutable_labels())["drop"] = "1";
  job.set_etag("\"7\"");
  server.jobs[kJob] = job;
  const CliRun run = RunForTest({"update", "my-job", "--label", "new=2", "--remove-label", "drop",
                                 "--server", server.address(), "--output", "json"});
  ASSERT_EQ(run.code, 0) << run.err;
  ASSERT_EQ(server.updates.size(), 1u);
  EXPECT_THAT(server.updates[0].update_mask().paths(), ElementsAre("labels"));
  EXPECT_EQ(server.updates[0].quantization_job().etag(), "\"7\"");
  EXPECT_EQ(run.json()["labels"], nlohmann::json({{"keep", "1"}, {"new", "2"}}));
}

}  // namespace
}  // namespace quantry::cli
