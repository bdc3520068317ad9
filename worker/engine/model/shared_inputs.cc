#include "worker/engine/model/shared_inputs.h"

#include <algorithm>

namespace quantry::engine {

int InputSource(const Architecture& architecture, int index) {
  for (const SmoothingGroup& group : architecture.smoothing_groups) {
    const auto& members = group.linears;
    if (std::find(members.begin(), members.end(), index) != members.end()) {
      return *std::min_element(members.begin(), members.end());
    }
  }
  return index;
}

}  // namespace quantry::engine
