#pragma once

#include <atomic>
#include <memory>
#include <string_view>

#include "server/rpc/service_context.h"

namespace quantry::server {

// A call that stays open and goes on in steps: a long poll or a stream.
// `Reactor` is the gRPC reactor it is. Reactions of gRPC, wake-ups and timers
// only kick; Step() runs on the executor, never twice at once, and owns all
// state of the derived class. The call owns itself and is gone some time after
// End().
template <class Reactor>
class SteppedCall : public Reactor {
 public:
  void OnCancel() override {
    cancelled_ = true;
    task_->Kick();
  }
  void OnDone() override { delete this; }

 protected:
  // `method` is the full name.
  SteppedCall(const ServiceContext* context, Executor* executor, std::string_view method)
      : context_(context),
        call_(method, context->runtime->metrics),
        task_(std::make_shared<SerialTask>(executor, [this] { Step(); })) {}

  // The last thing a derived constructor does: the first step may start at once.
  void Start() {
    context_->runtime->open_streams.Add(task_);
    task_->Kick();
  }

  virtual void Step() = 0;
  // Runs once, before the caller learns of the end.
  virtual void OnEnd() {}

  // The caller went away.
  bool cancelled() const { return cancelled_; }
  void Cancelled() { cancelled_ = true; }
  bool draining() const { return context_->runtime->draining; }

  // The last thing a step does: the call may be gone when it returns.
  void End(const absl::Status& status) {
    subscription_.Reset();
    context_->runtime->open_streams.Remove(task_.get());
    task_->Stop();
    OnEnd();
    const grpc::Status final = call_.End(status);
    this->Finish(final);
  }

  const ServiceContext* const context_;
  Call call_;
  const std::shared_ptr<SerialTask> task_;
  WakeupHub::Subscription subscription_;  // the step's own

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace quantry::server
