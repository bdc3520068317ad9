#include "common/http_host.h"

#include <arpa/inet.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace quantry {
namespace {

constexpr size_t kMaxNameBytes = 253;

std::string Lower(std::string_view text) { return absl::AsciiStrToLower(std::string(text)); }

// The header's values, one a line that names it.
std::vector<std::string> HostsOf(std::string_view head) {
  std::vector<std::string> hosts;
  for (size_t begin = head.find("\r\n"); begin != std::string_view::npos;) {
    begin += 2;
    const size_t end = head.find("\r\n", begin);
    const std::string_view line = head.substr(begin, end - begin);
    const size_t colon = line.find(':');
    if (colon != std::string_view::npos && Lower(line.substr(0, colon)) == "host") {
      std::string value = Lower(line.substr(colon + 1));
      absl::StripAsciiWhitespace(&value);
      hosts.push_back(std::move(value));
    }
    begin = end;
  }
  return hosts;
}

// "[::1]:7072" -> "::1", "localhost:7072" -> "localhost"; nothing when it is
// neither a name nor an address.
std::optional<std::string> WithoutPort(const std::string& host) {
  const bool bracketed = host.rfind('[', 0) == 0;
  const size_t close = bracketed ? host.find(']') : std::string::npos;
  if (bracketed && close == std::string::npos) return std::nullopt;
  const size_t colon = host.find(':', bracketed ? close : 0);
  const std::string port = colon == std::string::npos ? "" : host.substr(colon + 1);
  const size_t end = colon == std::string::npos ? host.size() : colon;
  if (port.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  if (!bracketed) return host.substr(0, end);
  if (end != close + 1) return std::nullopt;
  return host.substr(1, close - 1);
}

bool IsNumeric(const std::string& host) {
  unsigned char buffer[sizeof(in6_addr)];
  return inet_pton(AF_INET, host.c_str(), buffer) == 1 ||
         inet_pton(AF_INET6, host.c_str(), buffer) == 1;
}

bool IsName(const std::string& name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.-_") == std::string::npos;
}

}  // namespace

HttpHostRule::HttpHostRule(std::vector<std::string> names, bool any)
    : names_([&] {
        for (std::string& name : names) name = Lower(name);
        return std::move(names);
      }()),
      any_(any) {}

std::string HttpHostRule::Refusal(std::string_view head) const {
  const std::vector<std::string> hosts = HostsOf(head);
  if (any_ || hosts.empty()) return "";
  const std::optional<std::string> host = WithoutPort(hosts.front());
  if (hosts.size() > 1 || !host.has_value()) {
    return "wanted one Host header with an address or a name, got something else\n";
  }
  if (IsNumeric(*host) || *host == "localhost") return "";
  if (std::find(names_.begin(), names_.end(), *host) != names_.end()) return "";
  return absl::StrCat(
      "this port answers requests for localhost, numeric addresses and the names of --admin-hosts, "
      "so that no web site can read it through a browser on this machine; this one is for ",
      IsName(*host) ? absl::StrCat("'", *host, "'") : std::string("another name"),
      ". If a proxy of yours sent it: --admin-hosts=", IsName(*host) ? *host : "NAME",
      ", or let the proxy send Host: 127.0.0.1\n");
}

absl::Status CheckHostNames(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (!IsName(Lower(name))) {
      return absl::InvalidArgumentError(absl::StrCat(
          "wanted a host name such as status.example.com, without scheme, port or *, got '", name,
          "'"));
    }
  }
  return absl::OkStatus();
}

}  // namespace quantry
