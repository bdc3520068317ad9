#include "worker/agent/engine_job.h"

#include <string>

#include "gtest/gtest.h"

namespace quantry::agent {
namespace {

const AttemptDir kAttempt{"/scratch/jobs/uid/7"};

TEST(MakeEngineJobTest, TheOperatorDecidesWhatTheSpecLeavesOpen) {
  struct Case {
    std::string device;
    int threads;
    std::string wanted_device;
    int wanted_threads;
  };
  for (const Case& one :
       {Case{"", 0, "cuda:1", 5}, Case{"auto", 0, "cuda:1", 5}, Case{"auto", -1, "cuda:1", 5},
        Case{"cpu", 0, "cpu", 5}, Case{"", 2, "cuda:1", 2}, Case{"cuda", 2, "cuda", 2}}) {
    v1::Lease lease;
    lease.mutable_spec()->mutable_resources()->set_device(one.device);
    lease.mutable_spec()->mutable_resources()->set_threads(one.threads);
    const v1::EngineJob job =
        MakeEngineJob(lease, JobInputs{}, kAttempt, {.device = "cuda:1", .threads = 5});
    EXPECT_EQ(job.device(), one.wanted_device) << one.device << " " << one.threads;
    EXPECT_EQ(job.threads(), one.wanted_threads) << one.device << " " << one.threads;
  }
}

TEST(MakeEngineJobTest, TextsHaveLocalPathsAndStayAbsent) {
  v1::Lease lease;
  lease.mutable_spec()->mutable_calibration()->mutable_source()->set_uri("s3://bucket/text");
  JobInputs inputs;
  inputs.model_dir = "/model";
  inputs.calibration = "/scratch/text/calibration";
  const v1::EngineJob job = MakeEngineJob(lease, inputs, kAttempt, {});
  EXPECT_EQ(job.model_dir(), "/model");
  EXPECT_EQ(job.calibration().text().path(), "/scratch/text/calibration");
  EXPECT_FALSE(job.has_evaluation());
  EXPECT_FALSE(job.has_preprocessing());
  EXPECT_EQ(job.output_dir(), kAttempt.output());
  EXPECT_EQ(job.checkpoint_dir(), kAttempt.checkpoint());
}

TEST(MakeEngineJobTest, EachTextHasItsOwnPath) {
  v1::Lease lease;
  v1::JobSpec& spec = *lease.mutable_spec();
  spec.mutable_calibration()->mutable_source()->set_uri("s3://bucket/calibration");
  spec.mutable_evaluation()->mutable_source()->set_uri("s3://bucket/evaluation");
  spec.mutable_preprocessing()->mutable_source()->set_uri("s3://bucket/corpus");
  JobInputs inputs;
  inputs.calibration = "/scratch/text/calibration";
  inputs.evaluation = "/scratch/text/evaluation";
  inputs.preprocessing = "/scratch/text/preprocessing";
  const v1::EngineJob job = MakeEngineJob(lease, inputs, kAttempt, {});
  EXPECT_EQ(job.calibration().text().path(), inputs.calibration);
  EXPECT_EQ(job.evaluation().text().path(), inputs.evaluation);
  EXPECT_EQ(job.preprocessing().text().path(), inputs.preprocessing);
}

}  // namespace
}  // namespace quantry::agent
