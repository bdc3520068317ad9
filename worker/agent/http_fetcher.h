#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/storage.h"

namespace quantry::agent {

struct FetchOptions {
  // Scheme, host, port and perhaps a path of the only server that is asked. It
  // alone gets the token, and it alone may have a private address or no TLS.
  std::string endpoint;
  // Hosts it may redirect to, see IsListedHost. Only by https, and only at public
  // addresses (IsPublicAddress).
  std::vector<std::string> redirect_hosts;
  std::string token_file;  // read for every request; "" = none
  int max_tries = 8;       // without a byte of advance
  std::chrono::milliseconds first_wait{1000};
  std::chrono::milliseconds longest_wait{30000};
};

// GET over libcurl for servers that an operator named. Redirects are followed by
// hand, each hop checked; proxies of the environment are not used, since they
// would hide which address is asked. Connection failures, 408, 429 and 5xx are
// tried again after a jittered wait (at least Retry-After), going on at the
// offset reached. Thread-safe.
//
// Errors: SOURCE_FORBIDDEN (a redirect to where none may go, 401 and 403),
// SOURCE_MISSING (404), RESOURCE_LIMIT (too large), STORAGE_ERROR (still failing
// after the last try), DISK_FULL; what `check` returns ends the transfer.
class HttpFetcher {
 public:
  explicit HttpFetcher(FetchOptions options) : options_(std::move(options)) {}

  const FetchOptions& options() const { return options_; }

  // The whole body.
  absl::StatusOr<std::string> Get(const std::string& url, std::int64_t max_bytes,
                                  const TransferCheck& check) const;
  // Appends to `file` until it has `size_bytes`; what it holds already is not
  // fetched again. The bytes are synced.
  absl::Status Download(const std::string& url, const std::string& file, std::int64_t size_bytes,
                        const TransferCheck& check) const;

 private:
  const FetchOptions options_;
};

}  // namespace quantry::agent
