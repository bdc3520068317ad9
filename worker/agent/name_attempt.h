#pragma once

namespace quantry::agent {

// Says which attempt a message of the worker service is about; `of` is its lease
// or its session.
template <class Attempt, class Message>
void NameAttempt(const Attempt& of, Message* message) {
  message->set_job(of.job());
  message->set_job_uid(of.job_uid());
  message->set_epoch(of.epoch());
}

}  // namespace quantry::agent
