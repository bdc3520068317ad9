// The engine's job as far as a spec decides it: alike for the quote a server
// asks for and for the run of a worker.
#pragma once

#include "quantry/v1/engine.pb.h"
#include "quantry/v1/job.pb.h"

namespace quantry {

// Without names, folders and the paths of texts: the caller sets them. A text
// without a source is left out.
v1::EngineJob EngineJobOf(const v1::JobSpec& spec);

}  // namespace quantry
