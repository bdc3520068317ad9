#include "server/rpc/executor.h"

#include <utility>

namespace quantry::server {

Executor::Executor(int threads, size_t queue_limit) : queue_limit_(queue_limit) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Loop(); });
}

Executor::~Executor() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool Executor::Submit(Task task) {
  {
    const std::lock_guard lock(mutex_);
    if (tasks_.size() >= queue_limit_) return false;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void Executor::Post(Task task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void Executor::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it holds goes away outside the lock
    lock.lock();
  }
}

Timer::Timer() : thread_([this] { Loop(); }) {}

Timer::~Timer() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

Timer::Handle Timer::At(MonotonicTime when, std::function<void()> callback) {
  Handle handle{.when = when};
  bool earliest = false;
  {
    const std::lock_guard lock(mutex_);
    handle.id = ++last_id_;
    const auto inserted = pending_.emplace(handle, std::move(callback)).first;
    earliest = inserted == pending_.begin();
  }
  if (earliest) wake_.notify_all();
  return handle;
}

void Timer::Cancel(const Handle& handle) {
  const std::lock_guard lock(mutex_);
  pending_.erase(handle);
}

void Timer::Loop() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (pending_.empty()) {
      wake_.wait(lock);
      continue;
    }
    const MonotonicTime next = pending_.begin()->first.when;
    if (std::chrono::steady_clock::now() < next) {
      wake_.wait_until(lock, next);
      continue;
    }
    auto node = pending_.extract(pending_.begin());
    lock.unlock();
    node.mapped()();
    lock.lock();
  }
}

void SerialTask::Kick() {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return;
    if (scheduled_) {
      again_ = true;
      return;
    }
    scheduled_ = true;
  }
  executor_->Post([self = shared_from_this()] { self->Run(); });
}

void SerialTask::KickAt(Timer* timer, MonotonicTime when) {
  timer->Cancel(alarm_);
  alarm_timer_ = timer;
  alarm_ = timer->At(when, [weak = weak_from_this()] {
    if (const auto task = weak.lock()) task->Kick();
  });
}

void SerialTask::Stop() {
  if (alarm_timer_ != nullptr) alarm_timer_->Cancel(alarm_);
  const std::lock_guard lock(mutex_);
  stopped_ = true;
}

void SerialTask::Run() {
  {
    const std::lock_guard lock(mutex_);
    again_ = false;  // this run sees whatever the kicks so far were about
  }
  step_();
  {
    const std::lock_guard lock(mutex_);
    scheduled_ = again_ && !stopped_;
    if (!scheduled_) return;
  }
  // Through the queue, so that one busy stream does not hold a thread.
  executor_->Post([self = shared_from_this()] { self->Run(); });
}

void StreamRegistry::Add(const std::shared_ptr<SerialTask>& task) {
  const std::lock_guard lock(mutex_);
  tasks_[task.get()] = task;
}

void StreamRegistry::Remove(const SerialTask* task) {
  const std::lock_guard lock(mutex_);
  tasks_.erase(task);
}

void StreamRegistry::KickAll() {
  const std::lock_guard lock(mutex_);
  for (const auto& [unused, weak] : tasks_) {
    if (const auto task = weak.lock()) task->Kick();
  }
}

}  // namespace quantry::server
