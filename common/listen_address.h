// Listen addresses of the form HOST:PORT.
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

// 127.0.0.0/8 and ::1.
bool IsLoopback(const ListenAddress& address);

// OK on loopback. Otherwise FAILED_PRECONDITION that says what listening there
// would take: `missing`, "--tls-cert-file and ...".
absl::Status RequireLoopback(const ListenAddress& address, std::string_view missing);

}  // namespace quantry
