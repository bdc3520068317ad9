#pragma once

#include "quantry/v1/engine.pb.h"
#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/materializer.h"
#include "worker/agent/work_dir.h"

namespace quantry::agent {

// What the operator decides about every engine of this worker.
struct EngineDefaults {
  std::string device = "auto";  // for jobs that leave it open
  int threads = 0;              // for jobs that leave it open; 0 = all cores
};

// The engine's job: the lease's spec with local paths in place of sources.
v1::EngineJob MakeEngineJob(const v1::Lease& lease, const JobInputs& inputs, const AttemptDir& dir,
                            const EngineDefaults& defaults);

}  // namespace quantry::agent
