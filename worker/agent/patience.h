#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "absl/status/status.h"

namespace quantry::agent {

// Lets a step of an attempt wait for a store that does not answer, so that an
// outage of minutes costs a job neither its finished work nor an attempt.
// Belongs to the thread that runs the attempt.
class Patience {
 public:
  struct Limits {
    std::chrono::milliseconds total{0};     // of one outage; 0 = no second try
    std::chrono::milliseconds first{1000};  // doubled after each try
    std::chrono::milliseconds longest{30000};
  };

  // `running`: OK while the attempt may go on; asked several times a second.
  // `tell`: what the job's owner should read about a wait.
  Patience(Limits limits, std::function<absl::Status()> running,
           std::function<void(const std::string&)> tell);

  // Repeats `step` while it answers UNAVAILABLE without a reason of ours, which
  // is what a store's silence looks like, with jittered waits. Returns its last
  // answer, or that of `running` once the attempt must stop.
  absl::Status Try(const std::function<absl::Status()>& step);

 private:
  absl::Status Wait(std::chrono::milliseconds time) const;

  const Limits limits_;
  const std::function<absl::Status()> running_;
  const std::function<void(const std::string&)> tell_;
};

}  // namespace quantry::agent
