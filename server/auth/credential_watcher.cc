#include "server/auth/credential_watcher.h"

#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <utility>

#include "common/certificates.h"
#include "common/log.h"

namespace quantry::server {

CredentialWatcher::CredentialWatcher(Options options) : options_(std::move(options)) {
  Look();
  thread_ = std::jthread([this](std::stop_token stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, stop, options_.interval, [&] { return stop.stop_requested(); })) {
      Look();
    }
  });
}

absl::StatusOr<Time> CredentialWatcher::EndOf(const std::string& name,
                                              const std::string& file) const {
  if (const auto key = options_.keys.find(name); key != options_.keys.end()) {
    if (absl::Status pair = CheckKeyPair(file, key->second); !pair.ok()) return pair;
  }
  return CertificateExpiry(file);
}

void CredentialWatcher::Look() {
  if (options_.auth != nullptr) {
    const auto reloaded = options_.auth->Reload();
    const std::string failure(reloaded.status().message());
    // A file that stays wrong is told once.
    const bool news = reloaded.ok() ? *reloaded : failure != reload_failure_;
    reload_failure_ = failure;
    if (news) options_.on_reload(reloaded.status());
  }
  for (const auto& [name, file] : options_.certificates) {
    const auto end = EndOf(name, file);
    const std::string failure(end.status().message());
    if (end.ok()) {
      options_.on_certificate(name, *end);
    } else if (failures_[name] != failure) {
      log::Error("a certificate cannot be used: new connections may be refused until it can",
                 {{"certificate", name}, {"error", failure}});
      options_.on_unusable();
    }
    failures_[name] = failure;
  }
}

}  // namespace quantry::server
