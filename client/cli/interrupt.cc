#include "client/cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <utility>

namespace quantry::cli {
namespace {

constexpr int kShellSignalBase = 128;

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

Interrupter::Interrupter() {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::jthread([this](std::stop_token stop) { Listen(std::move(stop)); });
}

Interrupter::~Interrupter() {
  thread_.request_stop();
  thread_.join();
  const sigset_t set = Signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void Interrupter::Listen(std::stop_token stop) {
  const sigset_t set = Signals();
  const timespec tick = {0, 50'000'000};
  while (!stop.stop_requested()) {
    const int number = sigtimedwait(&set, nullptr, &tick);
    if (number > 0) Fire(number);
  }
}

void Interrupter::Fire(int signal_number) {
  std::lock_guard lock(mutex_);
  // Whatever the command is stuck in, a second Ctrl-C gets the prompt back.
  if (fired_ != 0) _exit(kShellSignalBase + signal_number);
  fired_ = signal_number;
  if (action_) action_();
  changed_.notify_all();
}

int Interrupter::fired() const {
  std::lock_guard lock(mutex_);
  return fired_;
}

void Interrupter::SleepFor(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, time, [this] { return fired_ != 0; });
}

Interrupter::Guard::Guard(Interrupter* interrupter, std::function<void()> action)
    : interrupter_(interrupter) {
  if (interrupter_ == nullptr) return;
  std::lock_guard lock(interrupter_->mutex_);
  if (interrupter_->fired_ != 0) action();
  interrupter_->action_ = std::move(action);
}

Interrupter::Guard::~Guard() {
  if (interrupter_ == nullptr) return;
  std::lock_guard lock(interrupter_->mutex_);
  interrupter_->action_ = nullptr;
}

}  // namespace quantry::cli
