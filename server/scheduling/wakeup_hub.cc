#include "server/scheduling/wakeup_hub.h"

#include <atomic>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace quantry::server {
namespace {

constexpr int kWaiters = 16;

}  // namespace

// One subscription. `running` is held while the callback runs, so that Reset()
// can wait for it; `runner` lets a callback end its own subscription.
struct WakeupHub::Subscription::Entry {
  std::function<void()> callback;
  std::weak_ptr<State> state;
  std::optional<JobKey> job;  // absent: waits for work
  // Its place among those: thousands end at once when their job does.
  std::multimap<JobKey, std::shared_ptr<Entry>>::iterator watching;
  std::list<std::shared_ptr<Entry>>::iterator waiting;
  std::mutex running;
  std::atomic<std::thread::id> runner{};
  std::atomic<bool> ended{false};

  void Call() {
    std::lock_guard lock(running);
    if (ended.load()) return;
    runner.store(std::this_thread::get_id());
    callback();
    runner.store(std::thread::id());
  }
};

struct WakeupHub::State {
  using Entry = Subscription::Entry;
  std::mutex mutex;
  std::multimap<JobKey, std::shared_ptr<Entry>> jobs;
  std::list<std::shared_ptr<Entry>> waiting;  // who was woken goes to the end
  std::function<void(const JobKey*)> relay;   // set once

  using Entries = std::vector<std::shared_ptr<Entry>>;

  Entries Watching(const JobKey& job) {
    std::lock_guard lock(mutex);
    Entries watching;
    auto [begin, end] = jobs.equal_range(job);
    for (auto row = begin; row != end; ++row) watching.push_back(row->second);
    return watching;
  }

  Entries Waiting(int most) {
    std::lock_guard lock(mutex);
    Entries longest;
    for (size_t left = waiting.size(); left > 0 && most > 0; --left, --most) {
      longest.push_back(waiting.front());
      waiting.splice(waiting.end(), waiting, waiting.begin());
    }
    return longest;
  }

  Entries All() {
    std::lock_guard lock(mutex);
    Entries all(waiting.begin(), waiting.end());
    for (const auto& [job, entry] : jobs) all.push_back(entry);
    return all;
  }

  static void Wake(const Entries& entries) {
    for (const auto& entry : entries) entry->Call();
  }

  void Remove(const Entry& entry) {
    std::lock_guard lock(mutex);
    if (entry.job) {
      jobs.erase(entry.watching);
    } else {
      waiting.erase(entry.waiting);
    }
  }
};

WakeupHub::Subscription::Subscription() = default;
WakeupHub::Subscription::~Subscription() { Reset(); }
WakeupHub::Subscription::Subscription(Subscription&&) noexcept = default;

WakeupHub::Subscription& WakeupHub::Subscription::operator=(Subscription&& other) noexcept {
  if (this != &other) {
    Reset();
    entry_ = std::move(other.entry_);
  }
  return *this;
}

void WakeupHub::Subscription::Reset() {
  std::shared_ptr<Entry> entry = std::exchange(entry_, nullptr);
  if (entry == nullptr) return;
  entry->ended.store(true);
  if (auto state = entry->state.lock()) state->Remove(*entry);
  if (entry->runner.load() == std::this_thread::get_id()) return;
  std::lock_guard wait_until_idle(entry->running);
}

WakeupHub::WakeupHub() : state_(std::make_shared<State>()) {}
WakeupHub::~WakeupHub() = default;

WakeupHub::Subscription WakeupHub::OnJobChanged(const JobKey& job, std::function<void()> callback) {
  Subscription subscription;
  subscription.entry_ = std::make_shared<Subscription::Entry>();
  subscription.entry_->callback = std::move(callback);
  subscription.entry_->state = state_;
  subscription.entry_->job = job;
  std::lock_guard lock(state_->mutex);
  subscription.entry_->watching = state_->jobs.emplace(job, subscription.entry_);
  return subscription;
}

WakeupHub::Subscription WakeupHub::OnWorkAvailable(std::function<void()> callback) {
  Subscription subscription;
  subscription.entry_ = std::make_shared<Subscription::Entry>();
  subscription.entry_->callback = std::move(callback);
  subscription.entry_->state = state_;
  std::lock_guard lock(state_->mutex);
  subscription.entry_->waiting = state_->waiting.insert(state_->waiting.end(), subscription.entry_);
  return subscription;
}

void WakeupHub::JobChanged(const JobKey& job) {
  State::Wake(state_->Watching(job));
  if (state_->relay) state_->relay(&job);
}

void WakeupHub::WorkAvailable(int waiters) {
  State::Wake(state_->Waiting(waiters));
  if (state_->relay) state_->relay(nullptr);
}

void WakeupHub::RelayTo(std::function<void(const JobKey*)> relay) {
  state_->relay = std::move(relay);
}

void WakeupHub::Receive(const JobKey* job) {
  State::Wake(job != nullptr ? state_->Watching(*job) : state_->Waiting(kWaiters));
}

void WakeupHub::WakeAll() { State::Wake(state_->All()); }

}  // namespace quantry::server
