// Supervises one quantry-worker beside the server: starts it, starts it again
// with growing pauses when it dies, stops it with the server. The child gets
// SIGKILL from the kernel should the server die first, so none is ever left.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace quantry::server {

// The child's environment: ours without our own settings, which would be read as the agent's.
std::vector<std::string> AgentEnvironment();

class EmbeddedAgent {
 public:
  struct Options {
    std::vector<std::string> argv;
    std::chrono::milliseconds first_pause{500};
    std::chrono::milliseconds longest_pause{30'000};
    // A child that lived this long starts with the first pause again.
    std::chrono::milliseconds healthy_after{60'000};
    std::function<void()> on_restart;  // for metrics
  };

  explicit EmbeddedAgent(Options options);
  ~EmbeddedAgent();  // Stop with no grace

  // SIGTERM, SIGKILL after `grace`; returns when the child is gone.
  void Stop(std::chrono::milliseconds grace);

 private:
  void Loop();
  // One life of the child; false when it must not be started again.
  bool RunOnce();
  // Waits; false when Stop was called.
  bool Pause(std::chrono::milliseconds time);

  const Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;               // guarded by mutex_
  std::chrono::milliseconds grace_{0};  // guarded by mutex_
  std::thread thread_;  // starts the child: must live as long as it (PR_SET_PDEATHSIG)
};

}  // namespace quantry::server
