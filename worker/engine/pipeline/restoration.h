#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/evaluation/evaluator.h"
#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/inputs.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/progress.h"

namespace quantry::engine {

// What preprocessing left (PreprocessingReport of artifact.proto).
struct RestorationResult {
  // Block `index` of the first pass, from the job's checkpoint.
  std::function<QuantizedBlock(int index)> first_pass;
  std::shared_ptr<const Checkpoint> model;  // what the job starts from now
  std::vector<HashedFile> files;            // part of every checkpoint from here on
  int64_t updates = 0;
  double loss_first = 0;
  double loss_last = 0;
  double relative_change = 0;
  double perplexity_first_pass = 0;  // 0 = not measured
  double perplexity_restored = 0;
};

struct RestorationTask {
  const Job& job;
  const Inputs& inputs;
  at::Device device;
  at::ScalarType scale_dtype;  // of the grids of both passes
  std::string dir;             // the job's checkpoint folder; its own lie in dir/first-pass
  std::string restored_dir;    // where the model is written
  EvaluationOptions evaluation;
  EventWriter& events;
  ProgressTracker& progress;
  const Seconds& clock;
  std::function<void(const std::string&)> warn;
};

// Preprocessing (spec: ptq161.md 5): quantizes the model with the job's method
// (first pass), trains adapters on it with the corpus, merges them, and writes
// the result as a checkpoint of the dtypes given. Goes on from what a killed
// run left: block by block, then a few updates behind (SavePace).
RestorationResult RestoreModel(const RestorationTask& task);

// Steps it reports, exactly.
int64_t RestorationSteps(const Job& job, const Checkpoint& checkpoint,
                         const StreamShape& calibration, const StreamShape& evaluation,
                         const EvaluationOptions& options);

}  // namespace quantry::engine
