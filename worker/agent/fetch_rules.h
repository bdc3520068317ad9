// Whom a fetch from outside may ask. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

struct sockaddr;

namespace quantry::agent {

// Whether `host` (lower case) is in the list: "cdn.example.com", or
// "*.example.com" for those below.
bool IsListedHost(std::string_view host, const std::vector<std::string>& listed);

// False for loopback, private, link-local, shared, multicast, documentation and
// tunnelling ranges of IPv4 and IPv6, and for any other family.
bool IsPublicAddress(const sockaddr& address);

}  // namespace quantry::agent
