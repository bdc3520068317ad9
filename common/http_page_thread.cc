#include "common/http_page_thread.h"

#include <utility>

namespace quantry {

HttpPageThread::HttpPageThread(Pages pages, std::function<void()> done)
    : pages_(std::move(pages)),
      done_(std::move(done)),
      thread_([this](const std::stop_token& stop) { Loop(stop); }) {}

bool HttpPageThread::Ask(std::uint64_t connection, HttpRequest request) {
  std::lock_guard lock(mutex_);
  if (asked_.size() >= kMaxWaiting) return false;
  asked_.push_back({connection, std::move(request)});
  changed_.notify_all();
  return true;
}

std::map<std::uint64_t, std::string> HttpPageThread::Take() {
  std::lock_guard lock(mutex_);
  return std::exchange(answered_, {});
}

void HttpPageThread::Loop(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [this] { return !asked_.empty(); }) && !stop.stop_requested()) {
    const Question question = std::move(asked_.front());
    asked_.pop_front();
    lock.unlock();
    std::string answer = RenderResponse(pages_(question.request.path), question.request.head);
    lock.lock();
    answered_[question.connection] = std::move(answer);
    done_();
  }
}

}  // namespace quantry
