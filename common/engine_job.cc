#include "common/engine_job.h"

namespace quantry {
namespace {

v1::EngineCalibration CalibrationOf(const v1::Calibration& spec) {
  v1::EngineCalibration calibration;
  calibration.mutable_text()->set_format(spec.format());
  calibration.set_samples(spec.samples());
  calibration.set_sequence_length(spec.sequence_length());
  calibration.set_sampling(spec.sampling());
  return calibration;
}

v1::EngineEvaluation EvaluationOf(const v1::Evaluation& spec) {
  v1::EngineEvaluation evaluation;
  evaluation.mutable_text()->set_format(spec.format());
  evaluation.set_sequence_length(spec.sequence_length());
  evaluation.set_windows(spec.windows());
  return evaluation;
}

v1::EnginePreprocessing PreprocessingOf(const v1::Preprocessing& spec) {
  v1::EnginePreprocessing preprocessing;
  preprocessing.mutable_text()->set_format(spec.format());
  preprocessing.set_sequence_length(spec.sequence_length());
  *preprocessing.mutable_lora() = spec.lora();
  return preprocessing;
}

}  // namespace

v1::EngineJob EngineJobOf(const v1::JobSpec& spec) {
  v1::EngineJob job;
  if (spec.calibration().has_source()) {
    *job.mutable_calibration() = CalibrationOf(spec.calibration());
  }
  if (spec.evaluation().has_source()) *job.mutable_evaluation() = EvaluationOf(spec.evaluation());
  if (spec.preprocessing().has_source()) {
    *job.mutable_preprocessing() = PreprocessingOf(spec.preprocessing());
  }
  *job.mutable_method() = spec.method();
  *job.mutable_outputs() = spec.outputs();
  if (spec.has_quality_gate()) *job.mutable_quality_gate() = spec.quality_gate();
  job.set_seed(spec.seed());
  job.set_device(spec.resources().device());
  job.set_threads(spec.resources().threads());
  return job;
}

}  // namespace quantry
