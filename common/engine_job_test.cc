#include "common/engine_job.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

namespace quantry {
namespace {

template <typename Message>
Message FromText(const char* text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message));
  return message;
}

// Each field that is copied, and none as it is by default.
constexpr char kSpec[] = R"(
  calibration {
    source { local_path: "/calibration" }
    format: TEXT_FORMAT_TEXT samples: 16 sequence_length: 256 sampling: SAMPLING_RANDOM
  }
  evaluation {
    source { local_path: "/evaluation" }
    format: TEXT_FORMAT_TOKEN_IDS sequence_length: 128 windows: 4
  }
  preprocessing {
    source { local_path: "/corpus" }
    format: TEXT_FORMAT_TOKEN_IDS sequence_length: 512
    lora {
      rank: 8 alpha: 4 dropout: 0.5 steps: 20 accumulation: 3 learning_rate: 0.25
      warmup_steps: 2 clip_norm: 0.75 attention_output: true
    }
  }
  method { rtn { grid { bits: 4 group_size: 64 symmetric: true } } }
  outputs { format: OUTPUT_FORMAT_GPTQ }
  outputs { format: OUTPUT_FORMAT_DENSE }
  quality_gate { max_perplexity_ratio: 1.5 max_perplexity_increase: 0.25 }
  seed: 7
  resources { device: "cuda:1" threads: 3 }
)";

// Paths of texts are the caller's.
constexpr char kJob[] = R"(
  calibration {
    text { format: TEXT_FORMAT_TEXT }
    samples: 16 sequence_length: 256 sampling: SAMPLING_RANDOM
  }
  evaluation {
    text { format: TEXT_FORMAT_TOKEN_IDS }
    sequence_length: 128 windows: 4
  }
  preprocessing {
    text { format: TEXT_FORMAT_TOKEN_IDS }
    sequence_length: 512
    lora {
      rank: 8 alpha: 4 dropout: 0.5 steps: 20 accumulation: 3 learning_rate: 0.25
      warmup_steps: 2 clip_norm: 0.75 attention_output: true
    }
  }
  method { rtn { grid { bits: 4 group_size: 64 symmetric: true } } }
  outputs { format: OUTPUT_FORMAT_GPTQ }
  outputs { format: OUTPUT_FORMAT_DENSE }
  quality_gate { max_perplexity_ratio: 1.5 max_perplexity_increase: 0.25 }
  seed: 7
  device: "cuda:1"
  threads: 3
)";

TEST(EngineJobTest, HasWhatTheSpecSays) {
  const v1::EngineJob job = EngineJobOf(FromText<v1::JobSpec>(kSpec));
  EXPECT_TRUE(
      google::protobuf::util::MessageDifferencer::Equals(job, FromText<v1::EngineJob>(kJob)))
      << job.DebugString();
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
