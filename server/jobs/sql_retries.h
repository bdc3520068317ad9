#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_split.h"

// Request ids of a job's retries, one a line in jobs.retry_id: a repeat, however late, is
// answered and queues nothing.
namespace quantry::server::sql {

template <class Database>
bool WasRetriedBy(Database& db, int64_t pk, const std::string& request_id) {
  if (request_id.empty()) return false;
  auto rows = db.Query("SELECT retry_id FROM jobs WHERE pk = $1", pk);
  if (!rows.Next()) return false;
  const std::string ids = rows.Text(0);
  for (const std::string_view id : absl::StrSplit(ids, '\n')) {
    if (id == request_id) return true;
  }
  return false;
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
