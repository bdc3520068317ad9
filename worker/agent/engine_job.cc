#include "worker/agent/engine_job.h"

#include "google/protobuf/util/json_util.h"

namespace quantry::agent {
namespace {

// The spec for the manifest: every server and worker prints the same text.
std::string SpecJson(const v1::JobSpec& spec) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(spec, &json, options);
  return json;
}

}  // namespace

v1::EngineJob MakeEngineJob(const v1::Lease& lease, const JobInputs& inputs, const AttemptDir& dir,
                            const EngineDefaults& defaults) {
  const v1::JobSpec& spec = lease.spec();
  v1::EngineJob job;
  job.set_job(lease.job());
  job.set_job_uid(lease.job_uid());
  job.set_epoch(lease.epoch());
  job.set_model_dir(inputs.model_dir);
  if (!inputs.calibration.empty()) {
    auto& calibration = *job.mutable_calibration();
    calibration.mutable_text()->set_path(inputs.calibration);
    calibration.mutable_text()->set_format(spec.calibration().format());
    calibration.set_samples(spec.calibration().samples());
    calibration.set_sequence_length(spec.calibration().sequence_length());
    calibration.set_sampling(spec.calibration().sampling());
  }
  *job.mutable_method() = spec.method();
  *job.mutable_outputs() = spec.outputs();
  if (!inputs.evaluation.empty()) {
    auto& evaluation = *job.mutable_evaluation();
    evaluation.mutable_text()->set_path(inputs.evaluation);
    evaluation.mutable_text()->set_format(spec.evaluation().format());
    evaluation.set_sequence_length(spec.evaluation().sequence_length());
    evaluation.set_windows(spec.evaluation().windows());
  }
  if (!inputs.preprocessing.empty()) {
    auto& preprocessing = *job.mutable_preprocessing();
    preprocessing.mutable_text()->set_path(inputs.preprocessing);
    preprocessing.mutable_text()->set_format(spec.preprocessing().format());
    preprocessing.set_sequence_length(spec.preprocessing().sequence_length());
    *preprocessing.mutable_lora() = spec.preprocessing().lora();
  }
  if (spec.has_quality_gate()) *job.mutable_quality_gate() = spec.quality_gate();
  job.set_seed(spec.seed());
  const std::string& device = spec.resources().device();
  job.set_device(device.empty() || device == "auto" ? defaults.device : device);
  const int threads = spec.resources().threads();
  job.set_threads(threads > 0 ? threads : defaults.threads);
  job.set_output_dir(dir.output());
  job.set_checkpoint_dir(dir.checkpoint());
  job.set_spec_digest(lease.spec_digest());
  job.set_traceparent(lease.traceparent());
  job.set_spec_json(SpecJson(spec));
  return job;
}

}  // namespace quantry::agent
