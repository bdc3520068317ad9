#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace quantry::cli {

// Joins a folder of the user's with a file name a server announced. The name is
// hostile: DATA_LOSS unless it is relative, of plain components (no "", ".",
// "..", backslash, control character) and below the length limits, so that the
// result lies below `folder`.
absl::StatusOr<std::string> JoinBelow(std::string_view folder, std::string_view name);

}  // namespace quantry::cli
