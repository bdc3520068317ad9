#include "server/status/status_json.h"

#include <gtest/gtest.h>

#include <cmath>

#include "common/errors.h"

namespace quantry::server {
namespace {

constexpr Time kNow = Time(std::chrono::hours(480'000));
constexpr char kEvil[] = "</script><img src=x onerror=alert(1)>\"'&\xff";

Job SmallJob() {
  Job job;
  job.key = {"acme", "my-job"};
  job.uid = "uid";
  job.spec.mutable_method()->mutable_awq()->mutable_grid()->set_bits(4);
  job.spec.mutable_method()->mutable_awq()->mutable_grid()->set_group_size(-1);
  job.state = JobState::kRunning;
  job.create_time = kNow;
  return job;
}

TEST(StatusJson, RowsSayWhatAJobIs) {
  Job job = SmallJob();
  job.progress.set_stage(v1::STAGE_QUANTIZING);
  job.progress.set_blocks_done(2);
  job.progress.set_blocks_total(5);
  job.progress.set_ratio(0.4);
  job.progress.mutable_eta()->set_seconds(90);
  const Json row = JobRowJson(job, {{0, {2, 1}}, {1, {3, 0.5}}});
  EXPECT_EQ(row.at("method"), "awq");
  EXPECT_EQ(row.at("grid").at("bits"), 4);
  EXPECT_EQ(row.at("state"), "RUNNING");
  EXPECT_EQ(row.at("create_time"), "2024-10-04T00:00:00.000Z");
  EXPECT_EQ(row.at("progress").at("stage"), "QUANTIZING");
  EXPECT_EQ(row.at("progress").at("eta_s"), 90);
  EXPECT_EQ(row.at("blocks")[1].at("final"), 0.5);
  EXPECT_FALSE(row.contains("error"));
  EXPECT_FALSE(row.contains("end_time"));
}

TEST(StatusJson, RecipesAndPreprocessingAreToldApart) {
  Job job = SmallJob();
  EXPECT_FALSE(JobRowJson(job, {}).contains("recipe"));
  EXPECT_FALSE(JobRowJson(job, {}).contains("preprocessing"));
  job.spec.mutable_method()->mutable_ptq161()->set_recipe("ptq161-plus");
  job.spec.mutable_preprocessing()->mutable_lora()->set_rank(8);
  for (const Json& json : {JobRowJson(job, {}), JobPageJson(job, {})}) {
    EXPECT_EQ(json.at("method"), "ptq161");
    EXPECT_EQ(json.at("recipe"), "ptq161-plus");
    EXPECT_EQ(json.at("preprocessing"), "lora");
    EXPECT_FALSE(json.contains("grid"));
  }
  v1::RestoreMethod& restore = *job.spec.mutable_method()->mutable_restore();
  restore.mutable_first_pass()->set_recipe("ptq161-plus");
  EXPECT_EQ(JobRowJson(job, {}).at("recipe"), "ptq161-plus");
}

TEST(StatusJson, PagesHoldResultAndError) {
  Job job = SmallJob();
  job.state = JobState::kFailed;
  job.error = ToRpcStatus(MakeError(Reason::kInvalidCheckpoint, "no model"));
  v1::StageTime& stage = *job.progress.add_stage_times();
  stage.set_stage(v1::STAGE_LOADING);
  stage.mutable_start_time()->set_seconds(60);
  v1::JobResult& result = job.result.emplace();
  result.mutable_quality()->mutable_perplexity()->set_quantized(5);
  result.mutable_bits()->set_linears(4.25);
  result.add_outputs()->set_format("dense");
  result.set_quality_gate_failed(true);
  const Json page = JobPageJson(job, {});
  EXPECT_EQ(page.at("error").at("reason"), "INVALID_CHECKPOINT");
  EXPECT_EQ(page.at("quality").at("perplexity_quantized"), 5);
  EXPECT_EQ(page.at("bits").at("linears"), 4.25);
  EXPECT_EQ(page.at("outputs")[0].at("format"), "dense");
  EXPECT_EQ(page.at("quality_gate_failed"), true);
  EXPECT_EQ(page.at("stages")[0].at("start"), "1970-01-01T00:01:00.000Z");
}

TEST(StatusJson, AnyTextIsOneString) {
  Job job = SmallJob();
  job.display_name = job.state_reason = job.worker = kEvil;
  job.labels[kEvil] = kEvil;
  const auto parsed = nlohmann::json::parse(JsonText(JobRowJson(job, {})));
  const std::string shown = std::string(kEvil, sizeof kEvil - 2) + "\xef\xbf\xbd";
  EXPECT_EQ(parsed.at("title"), shown);
  EXPECT_EQ(parsed.at("reason"), shown);
  EXPECT_EQ(parsed.at("labels").begin().key(), shown);
}

TEST(StatusJson, NumbersThatAreNoneAreNull) {
  EXPECT_NE(JsonText(JobRowJson(SmallJob(), {{0, {std::nan(""), 1}}})).find("\"rtn\":null"),
            std::string::npos);
}

TEST(StatusJson, EveryKindOfEvent) {
  const auto text = [](const v1::JobEvent& event) {
    const Json json = EventJson(event);
    return json.at("kind").get<std::string>() + ": " + json.at("text").get<std::string>();
  };
  v1::JobEvent event;
  event.mutable_state_changed()->set_to(v1::JOB_STATE_QUEUED);
  event.mutable_state_changed()->set_reason("WORKER_LOST");
  EXPECT_EQ(text(event), "state_changed: QUEUED: WORKER_LOST");
  event.mutable_progress()->set_steps_done(3);
  event.mutable_progress()->set_steps_total(9);
  EXPECT_EQ(text(event), "progress: 3 of 9 steps");
  event.mutable_block_done()->set_index(4);
  event.mutable_block_done()->set_seconds(1.5);
  EXPECT_EQ(text(event), "block_done: block 4 done in 1.5 s");
  event.mutable_log()->set_message("hello");
  EXPECT_EQ(text(event), "log: hello");
  event.mutable_checkpoint()->set_blocks_done(2);
  EXPECT_EQ(text(event), "checkpoint: checkpoint of 2 blocks, 0 bytes");
  event.mutable_stage_changed()->set_stage(v1::STAGE_PACKING);
  EXPECT_EQ(text(event), "stage_changed: PACKING");
  event.clear_kind();
  EXPECT_EQ(text(event), ": ");
}

TEST(StatusJson, QueueAndWorkers) {
  StoreStats stats;
  for (const JobState state : kAllJobStates) stats.jobs[state] = 0;
  stats.depth = 7;
  EXPECT_EQ(QueueJson(stats).at("jobs").size(), 6u);
  EXPECT_FALSE(QueueJson(stats).contains("pause"));
  stats.pause = QueuePause{"tea", kNow};
  EXPECT_EQ(QueueJson(stats).at("pause").at("reason"), "tea");
  Worker worker;
  worker.info.set_worker_id("w1");
  worker.info.add_gpus()->set_model("H100");
  worker.jobs = {{"acme", "my-job"}};
  const Json json = WorkerJson(worker);
  EXPECT_EQ(json.at("gpus")[0].at("model"), "H100");
  EXPECT_EQ(json.at("jobs")[0].at("id"), "my-job");
}

}  // namespace
}  // namespace quantry::server
