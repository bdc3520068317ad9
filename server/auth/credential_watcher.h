// Looks at the files of credentials while the server runs: reads those that
// changed, tells when certificates end. One thread of its own.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/auth/authenticator.h"

namespace quantry::server {

class CredentialWatcher {
 public:
  struct Options {
    Authenticator* auth = nullptr;                         // null: no authentication
    std::map<std::string, std::string> certificates = {};  // "server" -> file
    // "server" -> file of the key. gRPC takes no connection while the two do not
    // belong together, so such a certificate counts as none.
    std::map<std::string, std::string> keys = {};
    std::chrono::seconds interval{10};
    // All run on the watcher's thread. After a Reload that changed something
    // or failed.
    std::function<void(const absl::Status&)> on_reload = {};
    std::function<void(const std::string& certificate, Time end)> on_certificate = {};
    // Once for each reason that a certificate cannot be used.
    std::function<void()> on_unusable = [] {};
  };

  // Looks once before it returns.
  explicit CredentialWatcher(Options options);

  // One look. Public for tests; the thread calls it.
  void Look();

 private:
  absl::StatusOr<Time> EndOf(const std::string& name, const std::string& file) const;

  const Options options_;
  std::map<std::string, std::string> failures_;  // last message by file: logged once
  std::string reload_failure_;
  std::jthread thread_;
};

}  // namespace quantry::server
