#pragma once

#include "worker/engine/model/architecture.h"

namespace quantry::engine {

// Linears which read the same input (q/k/v, gate/up) share what is measured on
// it: the lowest index of those, or `index` itself.
int InputSource(const Architecture& architecture, int index);

}  // namespace quantry::engine
