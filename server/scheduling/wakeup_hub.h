#pragma once

#include <functional>
#include <memory>

#include "server/jobs/job.h"

// Wakes those who wait inside this process: watchers of a job, and long polls
// for work. Wake-ups are hints. They may be spurious, merged or (with several
// servers) missing: who is woken reads the store again, and who waits also
// polls now and then (1 s).
namespace quantry::server {

class WakeupHub {
 public:
  // Ends the subscription when destroyed; blocks while its callback runs
  // (unless destroyed from inside the callback).
  class Subscription {
   public:
    Subscription();
    ~Subscription();
    Subscription(Subscription&&) noexcept;
    Subscription& operator=(Subscription&&) noexcept;
    void Reset();

   private:
    friend class WakeupHub;
    struct Entry;
    std::shared_ptr<Entry> entry_;
  };

  WakeupHub();
  ~WakeupHub();  // subscriptions may outlive the hub

  // Callbacks run on the notifying thread: they must be quick, must not block
  // and must not notify; they may end their own subscription. One subscription's
  // callback never runs twice at once.
  Subscription OnJobChanged(const JobKey& job, std::function<void()> callback);
  Subscription OnWorkAvailable(std::function<void()> callback);

  void JobChanged(const JobKey& job);
  // Wakes at most `waiters` long polls, those that wait longest first.
  void WorkAvailable(int waiters = 16);

  // Tells `relay` too about every wake-up made by the two calls above (nullptr:
  // work is available), for the hubs of other servers; they hand it to
  // Receive(). Same rules as for callbacks. Set before anyone notifies.
  void RelayTo(std::function<void(const JobKey* job)> relay);
  void Receive(const JobKey* job);
  // After wake-ups may have been missed.
  void WakeAll();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace quantry::server
