#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "worker/engine/pipeline/job.h"

namespace quantry::engine {

// How to get the same bytes again:
//   command  of the shell; MODEL_DIR, CALIBRATION_FILE, EVALUATION_FILE and
//            CORPUS_FILE stand for the inputs, METHOD_CONFIG for `method`
//   argv     the same in words
//   method   what --method-config takes
// `threads` and `device_type` ("cpu", "cuda") are those the job ran with: other
// ones give other bytes.
nlohmann::ordered_json Reproduction(const Job& job, int threads, const std::string& device_type);

}  // namespace quantry::engine
