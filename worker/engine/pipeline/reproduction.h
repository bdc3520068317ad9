#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "worker/engine/nn/products.h"
#include "worker/engine/pipeline/job.h"

namespace quantry::engine {

// What a job ran with: others give other bytes.
struct RunWith {
  int threads = 0;
  std::string device_type;  // "cpu" or "cuda"
  ComputeDtype compute = ComputeDtype::kFloat32;
};

// How to get the same bytes again:
//   command  of the shell; MODEL_DIR, CALIBRATION_FILE, EVALUATION_FILE and
//            CORPUS_FILE stand for the inputs, METHOD_CONFIG for `method`
//   argv     the same in words
//   method   what --method-config takes; with the type of products that the job had where
//            that was the machine's to choose
nlohmann::ordered_json Reproduction(const Job& job, const RunWith& with);

}  // namespace quantry::engine
