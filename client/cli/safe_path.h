#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace quantry::cli {

// Joins a folder of the user's with a file name a server announced. The name is
// hostile: DATA_LOSS unless it is relative, of plain components (no "", ".",
// "..", backslash, control character) and below the length limits, so that the
// result lies below `folder`.
absl::StatusOr<std::string> JoinBelow(std::string_view folder, std::string_view name);

// What lies at a path of the user's, or that there is nothing.
// FAILED_PRECONDITION when nobody can tell: a folder on the way may not be
// entered, a name is too long.
absl::StatusOr<std::filesystem::file_status> LookAt(const std::string& path);

}  // namespace quantry::cli
