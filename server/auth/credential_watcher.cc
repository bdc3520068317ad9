#include "server/auth/credential_watcher.h"

#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <utility>

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

void CredentialWatcher::Look() {
  if (options_.auth != nullptr) {
    const auto reloaded = options_.auth->Reload();
    const std::string failure(reloaded.status().message());
    // A file that stays wrong is told once.
    const bool news = reloaded.ok() ? *reloaded : failure != reload_failure_;
    reload_failure_ = failure;
    if (news) options_.on_reload(reloaded.status());
    options_.on_look("principals", reloaded.ok());
  }
  for (const auto& [name, certificates] : options_.certificates) {
    certificates->Look([&, &name = name](const std::string& why) {
      log::Error("a certificate cannot be used", {{"certificate", name}, {"error", why}});
      options_.on_unusable();
    });
    options_.on_certificate(name, certificates->end());
    options_.on_look(name, certificates->usable());
  }
}

}  // namespace quantry::server
