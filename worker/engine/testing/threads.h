#pragma once

#include <ATen/Parallel.h>

namespace quantry::engine::test {

// LibTorch has that many threads while it lives, however many cores there are.
class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

}  // namespace quantry::engine::test
