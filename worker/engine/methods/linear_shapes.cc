#include "worker/engine/methods/linear_shapes.h"

namespace quantry::engine {

std::vector<NamedWidth> LinearWidths(const Architecture& architecture, const ModelConfig& config) {
  std::vector<NamedWidth> widths;
  for (const LinearSpec& linear : architecture.linears) {
    widths.emplace_back(linear.name, ShapeOf(config, linear.role).in);
  }
  return widths;
}

}  // namespace quantry::engine
