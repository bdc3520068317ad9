// Looks at the files of credentials while the server runs: takes those that
// changed and can be used, tells when certificates end. One thread of its own.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "common/checked_certificates.h"
#include "common/clock.h"
#include "server/auth/authenticator.h"

namespace quantry::server {

class CredentialWatcher {
 public:
  struct Options {
    Authenticator* auth = nullptr;                                  // null: no authentication
    std::map<std::string, CheckedCertificates*> certificates = {};  // "server" -> ...
    std::chrono::seconds interval{10};
    // All run on the watcher's thread. After a Reload that changed something
    // or failed.
    std::function<void(const absl::Status&)> on_reload = {};
    // At each look, of the certificate in use.
    std::function<void(const std::string& certificate, Time end)> on_certificate = {};
    // Once for each reason that a certificate's files cannot be used: the one
    // before stays in use.
    std::function<void()> on_unusable = [] {};
    // At each look, whether the files can be used: "principals" (with the keys
    // of tokens) or the name of a certificate.
    std::function<void(const std::string& credential, bool usable)> on_look = [](auto&&...) {};
  };

  // Looks once before it returns.
  explicit CredentialWatcher(Options options);

  // One look. Public for tests; the thread calls it.
  void Look();

 private:
  const Options options_;
  std::string reload_failure_;
  std::jthread thread_;
};

}  // namespace quantry::server
