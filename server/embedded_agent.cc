#include "server/embedded_agent.h"

#include <string_view>
#include <utility>

#include "common/doubling_wait.h"
#include "common/log.h"
#include "common/process.h"

extern char** environ;

namespace quantry::server {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLookInterval(100);

}  // namespace

std::vector<std::string> AgentEnvironment() {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    // The one setting of the worker's own that no flag below carries.
    const bool kept = text.starts_with("QUANTRY_MIN_FREE_DISK_BYTES=");
    if (kept || !text.starts_with("QUANTRY_")) environment.emplace_back(text);
  }
  return environment;
}

EmbeddedAgent::EmbeddedAgent(Options options)
    : options_(std::move(options)), thread_([this] { Loop(); }) {}

EmbeddedAgent::~EmbeddedAgent() { Stop(milliseconds(0)); }

void EmbeddedAgent::Stop(milliseconds grace) {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    grace_ = grace;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool EmbeddedAgent::Pause(milliseconds time) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, time, [this] { return stopping_; });
}

void EmbeddedAgent::Loop() {
  DoublingWait pause(options_.first_pause, options_.longest_pause);
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    if (!RunOnce()) return;
    if (std::chrono::steady_clock::now() - start >= options_.healthy_after) pause.Reset();
    if (!Pause(pause.Next())) return;
    if (options_.on_restart) options_.on_restart();
  }
}

bool EmbeddedAgent::RunOnce() {
  ChildOptions child_options;
  child_options.argv = options_.argv;
  child_options.environment = AgentEnvironment();
  child_options.capture_stdout = false;
  child_options.capture_stderr = false;
  auto child = ChildProcess::Spawn(child_options);
  if (!child.ok()) {
    log::Error("cannot start the embedded agent",
               {{"program", options_.argv[0]}, {"error", std::string(child.status().message())}});
    return true;
  }
  log::Info("embedded agent started", {{"pid", child->pid()}});
  for (;;) {
    if (const auto exit = child->Wait(milliseconds(0))) {
      if (exit->ok()) {
        log::Warning("the embedded agent ended by itself and is not started again");
        return false;
      }
      log::Error("the embedded agent died", {{"status", exit->code}, {"signal", exit->signal}});
      return true;
    }
    if (Pause(kLookInterval)) continue;
    milliseconds grace;
    {
      const std::lock_guard lock(mutex_);
      grace = grace_;
    }
    const ExitStatus exit = child->Terminate(grace);
    log::Info("embedded agent stopped", {{"status", exit.code}, {"signal", exit.signal}});
    return false;
  }
}

}  // namespace quantry::server
