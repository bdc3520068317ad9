// Failures of this server itself, as tenants may see them: an engine that is not
// there, a full disk. Their words name programs and folders of this machine.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace quantry::server {

// `status` as it is when the request is to blame for it, or when its caller is. Else
// its reason alone, of what could not be done ("make a quote"), and all of it in the
// log. Thread-safe.
absl::Status WithoutPlaces(std::string_view what, const absl::Status& status);

}  // namespace quantry::server
