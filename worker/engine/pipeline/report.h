#pragma once

#include <string>
#include <vector>

#include "worker/engine/pipeline/events.h"

namespace quantry::engine {

// Writes OUTPUT_DIR/report: blocks.json, the blocks' losses and metrics, and
// loss.svg, the losses drawn (rounding to nearest, the method's start where it
// reports one as metric "loss_init", its result). Holds no measured times: the
// same job gives the same bytes. A job without calibration has no losses and
// gets no plot. Returns the files, paths relative to `output_dir`. Disk errors
// are EngineError ENVIRONMENT.
std::vector<HashedFile> WriteReport(const std::string& output_dir, const std::string& method,
                                    const std::vector<BlockReport>& blocks);

}  // namespace quantry::engine
