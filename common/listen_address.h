// Listen addresses of the form HOST:PORT, and the rule that nothing listens
// beyond loopback without TLS and authentication (design.md §7).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantry {

struct ListenAddress {
  std::string host;        // numeric IPv4, or IPv6 without brackets
  std::uint16_t port = 0;  // 0 = any free one

  bool is_ipv6() const { return host.find(':') != std::string::npos; }
  // "127.0.0.1:7070", "[::1]:7070"
  std::string ToString() const;
};

// Accepts "127.0.0.1:7070", "[::1]:7070" and "localhost:7070" (read as
// 127.0.0.1). INVALID_ARGUMENT otherwise; names are not resolved.
absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text);

// OK for 127.0.0.0/8 and ::1. Otherwise FAILED_PRECONDITION that says what
// listening there will take.
absl::Status RequireLoopback(const ListenAddress& address);

}  // namespace quantry
