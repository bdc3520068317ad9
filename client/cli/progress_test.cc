#include "client/cli/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quantry::cli {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

v1::QuantizationJob Running() {
  v1::QuantizationJob job;
  job.set_name("tenants/t/quantizationJobs/my-job");
  job.set_state(v1::JOB_STATE_RUNNING);
  v1::JobProgress* progress = job.mutable_progress();
  progress->set_stage(v1::STAGE_QUANTIZING);
  progress->set_blocks_done(2);
  progress->set_blocks_total(5);
  progress->set_ratio(0.42);
  progress->set_loss_before(0.0123);
  progress->set_loss_after(0.0045);
  progress->mutable_eta()->set_seconds(12);
  return job;
}

TEST(ProgressLine, FitsTheTerminal) {
  EXPECT_EQ(ProgressLine(Running(), 120),
            "my-job  quantizing   block 2/5  [============>                 ]   42%  eta 12 s  "
            "loss 0.0123 -> 0.0045");
  EXPECT_EQ(ProgressLine(Running(), 80),
            "my-job  quantizing   block 2/5  [====>     ]   42%  eta 12 s");
  EXPECT_EQ(ProgressLine(Running(), 40), "my-job  quantizing   block 2/5   42%");
  for (int columns = 1; columns < 200; ++columns) {
    const std::string line = ProgressLine(Running(), columns);
    EXPECT_TRUE(line.size() < static_cast<size_t>(columns) || line == "my-job") << columns;
  }
}

TEST(ProgressLine, OtherStatesAndOddNumbers) {
  v1::QuantizationJob job = Running();
  job.mutable_progress()->set_ratio(std::numeric_limits<double>::quiet_NaN());
  EXPECT_THAT(ProgressLine(job, 120), testing::HasSubstr("  0%"));
  job.mutable_progress()->set_ratio(7);
  EXPECT_THAT(ProgressLine(job, 120), testing::HasSubstr("100%"));
  job.set_state(v1::JOB_STATE_QUEUED);
  EXPECT_EQ(ProgressLine(job, 80), "my-job  queued");
  job.set_state(v1::JOB_STATE_FAILED);
  job.set_state_reason("a\x1b[2Jb");
  EXPECT_EQ(ProgressLine(job, 80), "my-job  failed  (a [2Jb)");
}

v1::WatchQuantizationJobResponse Event(int64_t sequence) {
  v1::WatchQuantizationJobResponse message;
  message.mutable_event()->set_sequence(sequence);
  return message;
}

TEST(JobView, TellsEachThingOnce) {
  JobView view;
  v1::WatchQuantizationJobResponse snapshot;
  *snapshot.mutable_snapshot() = Running();
  snapshot.mutable_snapshot()->set_last_sequence(7);
  EXPECT_THAT(view.Apply(snapshot), ElementsAre("running, quantizing, block 2/5"));
  EXPECT_EQ(view.last_sequence(), 7);

  auto block = Event(8);
  block.mutable_event()->mutable_block_done()->set_index(2);
  block.mutable_event()->mutable_block_done()->set_seconds(3);
  EXPECT_THAT(view.Apply(block), ElementsAre("block 2 done in 3.0 s (3 of 5), eta 12 s"));
  EXPECT_THAT(view.Apply(block), IsEmpty());
  EXPECT_EQ(view.job().progress().blocks_done(), 3);

  // The stream broke; the snapshot comes again, then events from 8 on.
  snapshot.mutable_snapshot()->set_last_sequence(9);
  EXPECT_THAT(view.Apply(snapshot), IsEmpty());
  EXPECT_EQ(view.last_sequence(), 8);
  EXPECT_THAT(view.Apply(block), IsEmpty());
  auto state = Event(9);
  state.mutable_event()->mutable_state_changed()->set_to(v1::JOB_STATE_QUEUED);
  state.mutable_event()->mutable_state_changed()->set_reason("WORKER_LOST");
  EXPECT_THAT(view.Apply(state), ElementsAre("queued: WORKER_LOST"));
  EXPECT_FALSE(view.ended());
  v1::WatchQuantizationJobResponse end;
  end.mutable_end()->mutable_job()->set_state(v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(view.Apply(end), IsEmpty());
  EXPECT_TRUE(view.ended());
}

TEST(JobView, LossesThatNobodyMeasuredAreLeftOut) {
  JobView view;
  auto block = Event(1);
  block.mutable_event()->mutable_block_done()->set_seconds(3);
  EXPECT_THAT(view.Apply(block), ElementsAre("block 0 done in 3.0 s"));
  block.mutable_event()->set_sequence(2);
  block.mutable_event()->mutable_block_done()->set_loss_rtn(0.02);
  block.mutable_event()->mutable_block_done()->set_loss_final(0.01);
  EXPECT_THAT(view.Apply(block), ElementsAre("block 0 done in 3.0 s, loss 0.02 -> 0.01"));
}

TEST(JobView, LiveProgressIsTakenAndMovesNothing) {
  JobView view;
  v1::WatchQuantizationJobResponse progress;
  progress.mutable_progress()->set_ratio(0.5);
  EXPECT_THAT(view.Apply(progress), IsEmpty());
  EXPECT_EQ(view.job().progress().ratio(), 0.5);
  EXPECT_EQ(view.last_sequence(), 0);
}

TEST(JobView, SaysWhyAQueuedJobWaits) {
  JobView view;
  v1::WatchQuantizationJobResponse snapshot;
  snapshot.mutable_snapshot()->set_state(v1::JOB_STATE_QUEUED);
  snapshot.mutable_snapshot()->set_state_reason("waiting: no worker is connected");
  EXPECT_THAT(view.Apply(snapshot), ElementsAre("queued, waiting: no worker is connected"));
  auto log = Event(2);
  log.mutable_event()->mutable_log()->set_level(v1::LogLine::LEVEL_WARNING);
  log.mutable_event()->mutable_log()->set_message("waiting: worker w1 is draining");
  EXPECT_THAT(view.Apply(log), ElementsAre("warning: waiting: worker w1 is draining"));
  EXPECT_EQ(view.job().state_reason(), "waiting: worker w1 is draining");
  log.mutable_event()->set_sequence(3);
  log.mutable_event()->mutable_log()->set_level(v1::LogLine::LEVEL_INFO);
  EXPECT_THAT(view.Apply(log), IsEmpty());
  EXPECT_EQ(view.job().state_reason(), "");
}

TEST(JobView, WarningsAreToldInfosAreNot) {
  JobView view;
  auto log = Event(1);
  log.mutable_event()->mutable_log()->set_level(v1::LogLine::LEVEL_INFO);
  log.mutable_event()->mutable_log()->set_message("fine");
  EXPECT_THAT(view.Apply(log), IsEmpty());
  log.mutable_event()->set_sequence(2);
  log.mutable_event()->mutable_log()->set_level(v1::LogLine::LEVEL_WARNING);
  EXPECT_THAT(view.Apply(log), ElementsAre("warning: fine"));
}

}  // namespace
}  // namespace quantry::cli
