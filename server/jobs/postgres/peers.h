#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <pqxx/pqxx>
#include <set>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/unique_fd.h"
#include "server/jobs/job.h"

namespace quantry::server::postgres {

// What ties the servers of one database together, beside the tables: wake-ups
// (LISTEN and NOTIFY) and one clock. One thread with a connection of its own.
//
// Wake-ups never ride on a transaction that changes a job: NOTIFY takes a lock
// at commit that the whole database shares. They are collected and sent at
// most 20 times a second. They are hints: a server that dies, or a connection
// that breaks, loses some; who waits also polls, and after a reconnect
// everybody is woken.
//
// The clock is the database's: read at the start and every few seconds, so
// that leases do not depend on the servers' clocks. Of slow readings only those
// count that show a step of it.
class Peers {
 public:
  struct Options {
    std::string conninfo;
    FollowingClock* clock = nullptr;  // outlives this
    // A wake-up from another server; nullptr = work is available. Must be quick.
    std::function<void(const JobKey* job)> on_wakeup;
    std::function<void()> on_missed;  // some may have been lost
  };

  // Connects and reads the clock once. Errors: UNAVAILABLE STORE_UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<Peers>> Join(Options options);
  ~Peers();

  // Queues a wake-up for the other servers; nullptr = work is available.
  // Thread-safe, does not wait.
  void Tell(const JobKey* job);

 private:
  struct Outbox {
    std::set<JobKey> jobs;
    bool work = false;
    bool everything = false;  // too many to name
    bool empty() const { return jobs.empty() && !work && !everything; }
  };

  Peers(Options options, UniqueFd wake);

  void Run(const std::stop_token& stop);
  // Until it is told to stop. Throws what libpqxx throws.
  void Serve(const std::stop_token& stop, pqxx::connection& connection);
  // Waits for notifications, for something to send, or for `timeout`.
  void Wait(pqxx::connection& connection, bool also_for_outbox, std::chrono::milliseconds timeout);
  void Receive(const std::string& payload);
  void Send(pqxx::connection& connection, const std::string& channel);
  void ReadClock(pqxx::connection& connection, bool first);
  bool HasOutbox();

  const Options options_;
  const UniqueFd wake_;  // eventfd: something to send, or stop
  std::mutex mutex_;
  Outbox outbox_;
  std::jthread thread_;  // last
};

// The bytes kept under `name`, the same on every server; `fresh` is stored when
// there are none yet.
absl::StatusOr<std::string> SharedSecret(const std::string& conninfo, const std::string& name,
                                         const std::string& fresh);

}  // namespace quantry::server::postgres
