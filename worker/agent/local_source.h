#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace quantry::agent {

// The canonical path of `path`, which must lie below one of `roots` also after
// every symbolic link on the way; the kernel resolves it (openat2 with
// RESOLVE_BENEATH). A folder's direct entries are checked the same way, so
// that no file in it is read from elsewhere through a link.
//
// Errors: SOURCE_FORBIDDEN (outside, or a special file), SOURCE_MISSING.
absl::StatusOr<std::string> ResolveBelowRoots(std::string_view path,
                                              const std::vector<std::string>& roots);

}  // namespace quantry::agent
