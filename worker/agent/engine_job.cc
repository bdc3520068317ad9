#include "worker/agent/engine_job.h"

#include "common/engine_job.h"
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
  v1::EngineJob job = EngineJobOf(spec);
  job.set_job(lease.job());
  job.set_job_uid(lease.job_uid());
  job.set_epoch(lease.epoch());
  job.set_model_dir(inputs.model_dir);
  if (job.has_calibration()) {
    job.mutable_calibration()->mutable_text()->set_path(inputs.calibration);
  }
  if (job.has_evaluation()) job.mutable_evaluation()->mutable_text()->set_path(inputs.evaluation);
  if (job.has_preprocessing()) {
    job.mutable_preprocessing()->mutable_text()->set_path(inputs.preprocessing);
  }
  if (job.device().empty() || job.device() == "auto") job.set_device(defaults.device);
  if (job.threads() <= 0) job.set_threads(defaults.threads);
  job.set_output_dir(dir.output());
  job.set_checkpoint_dir(dir.checkpoint());
  job.set_spec_digest(lease.spec_digest());
  job.set_traceparent(lease.traceparent());
  job.set_spec_json(SpecJson(spec));
  return job;
}

}  // namespace quantry::agent
