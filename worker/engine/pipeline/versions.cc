#include "worker/engine/pipeline/versions.h"

#include <torch/headeronly/version.h>

namespace quantry::engine {

std::map<std::string, std::string> Versions() {
  return {{"engine", QUANTRY_VERSION},
          {"libtorch", TORCH_VERSION},
          {"tokenizers", "0.22"},
          {"schema", "quantry.manifest.v1"}};
}

}  // namespace quantry::engine
