#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "worker/engine/pipeline/events.h"
#include "worker/engine/pipeline/job.h"
#include "worker/engine/pipeline/manifest.h"

namespace quantry::engine {

// What a job has to show, without what differs from run to run (times, memory,
// names, places, warnings): the same job gives the same JSON. Contents:
// docs/formats/report.md. `manifest` is whole but for `files`.
nlohmann::ordered_json ReportJson(const Job& job, const Manifest& manifest);

// Writes OUTPUT_DIR/report: report.json, report.html (the same for people, one
// file that needs nothing else), blocks.json (losses and metrics), method.json
// (what `quantry submit --method-config` takes) and loss.svg, the losses drawn
// (rounding to nearest, the method's start where it reports one as metric
// "loss_init", its result); and into each output's folder its model card. The
// same job gives the same bytes. A job without calibration has no losses and
// gets no plot. Returns the files, paths relative to the output folder. Disk
// errors are EngineError ENVIRONMENT.
std::vector<HashedFile> WriteReport(const Job& job, const Manifest& manifest);

// "org/name" when a config.json's _name_or_path is a hub's name for a model and
// no place on somebody's disk; else "".
std::string BaseModel(const std::string& config_json);

}  // namespace quantry::engine
