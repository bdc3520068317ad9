#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "common/http_message.h"

namespace quantry {

// Answers HttpAdmin's pages one by one on a thread of its own. Thread-safe. The
// destructor lets the answer in progress end.
class HttpPageThread {
 public:
  static constexpr size_t kMaxWaiting = 16;
  using Pages = std::function<HttpResponse(const std::string& path)>;

  // `done` is called on the thread whenever an answer waits in Take().
  HttpPageThread(Pages pages, std::function<void()> done);

  // False: too many wait already.
  bool Ask(std::uint64_t connection, HttpRequest request);

  // Rendered answers by connection; each is given once.
  std::map<std::uint64_t, std::string> Take();

 private:
  struct Question {
    std::uint64_t connection;
    HttpRequest request;
  };

  void Loop(const std::stop_token& stop);

  const Pages pages_;
  const std::function<void()> done_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Question> asked_;
  std::map<std::uint64_t, std::string> answered_;
  std::jthread thread_;  // last: uses all of the above
};

}  // namespace quantry
