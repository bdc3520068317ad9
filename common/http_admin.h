// A very small HTTP/1.1 server for probes, metrics and read-only pages: GET and
// HEAD, one answer a connection, no TLS, nobody is asked who he is. Made for a
// loopback port that anything on the machine may poke at: request bytes, time
// and connections are bounded, a slow client delays nobody else, and requests
// that are meant for another host get 421 (HttpHostRule).
//
// One thread of its own serves all connections with poll(2); handlers of fixed
// paths run on it and must be quick and thread-safe towards the rest of the
// program. Pages may take their time: a second thread answers them one by one,
// so that a slow store delays no probe. The destructor closes the port and all
// connections and joins both.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/http_message.h"

namespace quantry {

// What the operator allows.
struct HttpAdminAccess {
  bool beyond_loopback = false;  // --admin-plaintext
  // --admin-hosts: names a Host header may have beside numeric addresses and
  // localhost. None on a port beyond loopback: any. Whoever reaches that port
  // asks it directly, and its names are the network's business.
  std::vector<std::string> hosts = {};
};

class HttpAdmin {
 public:
  using Handler = std::function<HttpResponse()>;
  using Handlers = std::map<std::string, Handler, std::less<>>;  // by path, "/metrics"
  // Answers every other path; one call at a time. More than a few waiting
  // requests get 503.
  using Pages = std::function<HttpResponse(const std::string& path)>;

  // Binds `address` (HOST:PORT) and serves until destroyed.
  // Errors: INVALID_ARGUMENT, FAILED_PRECONDITION (not loopback, in use).
  static absl::StatusOr<std::unique_ptr<HttpAdmin>> Start(std::string_view address,
                                                          Handlers handlers,
                                                          HttpAdminAccess access = {},
                                                          Pages pages = {});

  virtual ~HttpAdmin() = default;
  // With the port that was bound.
  virtual std::string address() const = 0;
};

// OK when an admin server may listen there; FAILED_PRECONDITION and
// INVALID_ARGUMENT as from Start.
absl::Status CheckAdminAddress(std::string_view address, bool beyond_loopback);

// Access of a program's configuration.
template <typename Config>
HttpAdminAccess AdminAccess(const Config& config) {
  return {
      .beyond_loopback = config.admin_plaintext(),
      .hosts = std::vector<std::string>(config.admin_hosts().begin(), config.admin_hosts().end())};
}

// What every quantry process answers: /livez is 200 while the process runs,
// /readyz 200 or 503 with the reason, /metrics the Prometheus text format.
// `not_ready` returns "" when ready, else why not. Both are called on the
// server's thread: one that waits for a store would hold up /livez.
HttpAdmin::Handlers StandardHandlers(std::function<std::string()> metrics_text,
                                     std::function<std::string()> not_ready);

}  // namespace quantry
