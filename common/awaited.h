#pragma once

#include <functional>

#include "absl/status/status.h"

namespace quantry {

// Asked by work that may take long: OK while somebody waits for its answer; then why nobody does,
// which ends it.
using Awaited = std::function<absl::Status()>;

}  // namespace quantry
