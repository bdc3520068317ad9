#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/match.h"

// Request ids of a job's retries, one a line in jobs.retry_id: a repeat, however late, is
// answered and queues nothing. How many there may be: kMaxRetryIdBytes in rules.h.
namespace quantry::server::sql {

template <class Database>
std::string RetryIdsOf(Database& db, int64_t pk) {
  auto rows = db.Query("SELECT retry_id FROM jobs WHERE pk = $1", pk);
  return rows.Next() ? rows.Text(0) : "";
}

inline bool IsAmong(const std::string& retry_ids, const std::string& request_id) {
  return !request_id.empty() &&
         absl::StrContains("\n" + retry_ids + "\n", "\n" + request_id + "\n");
}

// Begins the job's failures anew and remembers the retry.
template <class Database>
void NoteRetry(Database& db, int64_t pk, const std::string& request_id) {
  db.Execute(
      "UPDATE jobs SET retry_id = retry_id || $1, user_failures = 0, worker_losses = 0"
      " WHERE pk = $2",
      request_id.empty() ? std::string() : "\n" + request_id, pk);
}

}  // namespace quantry::server::sql
