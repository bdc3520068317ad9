#include "worker/agent/fetch_rules.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "absl/strings/ascii.h"

namespace quantry::agent {
namespace {

struct Range4 {
  std::uint32_t network;
  int bits;
};
// RFC 6890 and its successors: what is not for the public internet.
constexpr Range4 kNotPublic4[] = {
    {0x00000000, 8},  {0x0a000000, 8},  {0x64400000, 10}, {0x7f000000, 8},  {0xa9fe0000, 16},
    {0xac100000, 12}, {0xc0000000, 24}, {0xc0000200, 24}, {0xc0586300, 24}, {0xc0a80000, 16},
    {0xc6120000, 15}, {0xc6336400, 24}, {0xcb007100, 24}, {0xe0000000, 4},  {0xf0000000, 4}};

bool IsPublic4(std::uint32_t address) {
  return std::none_of(std::begin(kNotPublic4), std::end(kNotPublic4), [&](const Range4& range) {
    return (address >> (32 - range.bits)) == (range.network >> (32 - range.bits));
  });
}

// 64:ff9b::/96 is an IPv4 address behind DNS64 (RFC 6052): as public as that is.
// Else global unicast is 2000::/3; of it, not the tunnels that embed an IPv4 address
// (2001::/32, 2002::/16) and not documentation (2001:db8::/32).
bool IsPublic6(const in6_addr& address) {
  const std::uint8_t* b = address.s6_addr;
  constexpr std::uint8_t kNat64[12] = {0x00, 0x64, 0xff, 0x9b};
  if (std::memcmp(b, kNat64, sizeof kNat64) == 0) {
    return IsPublic4(std::uint32_t{b[12]} << 24 | std::uint32_t{b[13]} << 16 |
                     std::uint32_t{b[14]} << 8 | b[15]);
  }
  if ((b[0] & 0xe0) != 0x20) return false;
  if (b[0] == 0x20 && b[1] == 0x02) return false;
  const bool special =
      b[0] == 0x20 && b[1] == 0x01 && ((b[2] == 0 && b[3] == 0) || (b[2] == 0x0d && b[3] == 0xb8));
  return !special;
}

}  // namespace

bool IsListedHost(std::string_view host, const std::vector<std::string>& listed) {
  return std::any_of(listed.begin(), listed.end(), [&](const std::string& entry) {
    const std::string name = absl::AsciiStrToLower(entry);
    if (name.rfind("*.", 0) != 0) return host == name;
    const std::string_view below = std::string_view(name).substr(1);  // ".example.com"
    return host.size() > below.size() && host.substr(host.size() - below.size()) == below;
  });
}

bool IsPublicAddress(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in v4{};
    std::memcpy(&v4, &address, sizeof v4);
    return IsPublic4(ntohl(v4.sin_addr.s_addr));
  }
  if (address.sa_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, &address, sizeof v6);
    return IsPublic6(v6.sin6_addr);
  }
  return false;
}

}  // namespace quantry::agent
