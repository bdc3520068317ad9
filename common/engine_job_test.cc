#include "common/engine_job.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

TEST(EngineJobTest, HasWhatTheSpecSays) {
  v1::JobSpec spec;
  spec.mutable_calibration()->mutable_source()->set_local_path("/text");
  spec.mutable_calibration()->set_samples(16);
  spec.mutable_evaluation()->mutable_source()->set_local_path("/text");
  spec.mutable_evaluation()->set_windows(4);
  spec.mutable_preprocessing()->mutable_source()->set_local_path("/text");
  spec.mutable_preprocessing()->set_sequence_length(512);
  spec.mutable_method()->mutable_rtn()->mutable_grid()->set_bits(4);
  spec.add_outputs();
  spec.mutable_quality_gate()->set_max_perplexity_ratio(1.5);
  spec.set_seed(7);
  spec.mutable_resources()->set_device("cuda:1");
  spec.mutable_resources()->set_threads(3);
  const v1::EngineJob job = EngineJobOf(spec);
  EXPECT_EQ(job.calibration().samples(), 16);
  EXPECT_EQ(job.calibration().text().path(), "");
  EXPECT_EQ(job.evaluation().windows(), 4);
  EXPECT_EQ(job.preprocessing().sequence_length(), 512);
  EXPECT_EQ(job.method().rtn().grid().bits(), 4);
  EXPECT_EQ(job.outputs_size(), 1);
  EXPECT_EQ(job.quality_gate().max_perplexity_ratio(), 1.5);
  EXPECT_EQ(job.seed(), 7);
  EXPECT_EQ(job.device(), "cuda:1");
  EXPECT_EQ(job.threads(), 3);
}

TEST(EngineJobTest, WhatTheSpecLeavesOutIsAbsent) {
  v1::JobSpec spec;
  spec.mutable_calibration()->set_samples(16);
  const v1::EngineJob job = EngineJobOf(spec);
  EXPECT_FALSE(job.has_calibration());
  EXPECT_FALSE(job.has_evaluation());
  EXPECT_FALSE(job.has_preprocessing());
  EXPECT_FALSE(job.has_quality_gate());
}

}  // namespace
}  // namespace quantry
