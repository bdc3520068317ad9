#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/match.h"

// Request ids of a job's retries, one a line in jobs.retry_id: a repeat, however late, is
// answered and queues nothing.
namespace quantry::server::sql {

template <class Database>
bool WasRetriedBy(Database& db, int64_t pk, const std::string& request_id) {
  if (request_id.empty()) return false;
  auto rows = db.Query("SELECT retry_id FROM jobs WHERE pk = $1", pk);
  return rows.Next() && absl::StrContains("\n" + rows.Text(0) + "\n", "\n" + request_id + "\n");
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
