#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <string_view>

#include "server/rpc/service_context.h"

namespace quantry::server {

// A call that stays open and goes on in steps: a long poll or a stream.
// `Reactor` is the gRPC reactor it is. Reactions of gRPC, wake-ups and timers
// only kick; Step() runs on the executor, never twice at once, and owns all
// state of the derived class. A caller who may not call is told so in place of
// the first step. The call owns itself and is gone some time after End().
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
  SteppedCall(const ServiceContext* context, Executor* executor, std::string_view method,
              grpc::CallbackServerContext* call, const google::protobuf::Message& request)
      : context_(context),
        call_(method, context->runtime, call),
        admitted_(call_.Admit(&request)),
        task_(std::make_shared<SerialTask>(executor, [this] { Turn(); })) {}

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
  // Why the call must end now, whatever it waits for; OK when it need not.
  absl::Status Interrupted() {
    if (cancelled()) return absl::CancelledError("the caller went away");
    if (context_->runtime->draining) return RpcRuntime::Draining();
    return call_.Standing();
  }
  // Asks for a step at `when`, or earlier if the credential ends before.
  void WakeAt(MonotonicTime when) {
    if (const auto left = call_.credential_left()) {
      when = std::min<MonotonicTime>(when, std::chrono::steady_clock::now() + *left);
    }
    task_->KickAt(context_->runtime->timer, when);
  }

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
  const absl::Status admitted_;
  const std::shared_ptr<SerialTask> task_;
  WakeupHub::Subscription subscription_;  // the step's own

 private:
  void Turn() {
    if (!admitted_.ok()) return End(admitted_);
    Step();
  }

  std::atomic<bool> cancelled_{false};
};

}  // namespace quantry::server
