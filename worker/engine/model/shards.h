#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/engine/model/safetensors.h"

namespace quantry::engine {

// Maps the weight files of a checkpoint folder: STEM.safetensors, or the
// shards named by STEM.safetensors.index.json, each name a plain file name in
// that folder. Throws UserError INVALID_CHECKPOINT (a shard missing, an index
// that names paths or disagrees with its shards) or CHECKPOINT_FORMAT_REFUSED
// (only pickles are there).
std::vector<std::shared_ptr<SafetensorsFile>> OpenShards(const std::string& dir,
                                                         const std::string& stem = "model");

}  // namespace quantry::engine
