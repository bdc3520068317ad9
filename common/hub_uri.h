// hf://ORG/NAME[@REVISION]: a checkpoint on a model hub that speaks the Hugging
// Face HTTP API. Where that hub is, the worker's configuration says. Pure.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace quantry {

struct HubUri {
  std::string repo;               // "org/name", or "name" alone
  std::string revision = "main";  // branch, tag or commit

  // The revision is a whole commit, so the content behind it never changes.
  bool pinned() const;
};

bool IsHubUri(std::string_view uri);

// INVALID_ARGUMENT for anything whose parts could mean something else in a URL.
absl::StatusOr<HubUri> ParseHubUri(std::string_view uri);

}  // namespace quantry
