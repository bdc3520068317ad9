#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace quantry {

// Whom a request says it is for, against DNS rebinding. The owner of a web site
// can make its name mean 127.0.0.1: the browser of somebody who looks at it then
// asks this machine's loopback ports and, since name and port are the site's
// own, lets its script read the answers. Such a request carries the site's name
// as its Host, which is none of these: a numeric address, localhost, what the
// operator listed. Programs that send no Host are no browsers and pass. Immutable.
class HttpHostRule {
 public:
  // `names`: of a proxy in front, without port. `any`: every Host passes.
  HttpHostRule(std::vector<std::string> names, bool any);

  // "" when the request passes; else what its sender should hear. `head`: the
  // request up to the empty line.
  std::string Refusal(std::string_view head) const;

 private:
  const std::vector<std::string> names_;  // lower case
  const bool any_;
};

// INVALID_ARGUMENT unless each is a name such as status.example.com.
absl::Status CheckHostNames(const std::vector<std::string>& names);

}  // namespace quantry
