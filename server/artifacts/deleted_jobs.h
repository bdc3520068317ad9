#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include "server/artifacts/artifact_store.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

// Removes the files of deleted jobs, on a thread of its own: an artifact store
// that is slow or away must not hold up the sweep, which judges leases. What it
// is given outlives it.
class DeletedJobs {
 public:
  DeletedJobs(JobStore* jobs, ArtifactStore* artifacts);
  // Waits for the removal in progress; the rest is for the next process.
  ~DeletedJobs();

  // There may be something to remove. Returns at once; thread-safe.
  void Wake();

  // One pass over a batch: the jobs removed. Ends when the store seems to be
  // away: a folder or prefix that cannot be removed looks the same. A job that
  // cannot be removed, because the store refuses it say, blocks no other: it is
  // told once in the log and left out until a pass finds nothing else. Not while
  // the thread is at work.
  int RemoveBatch(const std::stop_token& stop);

 private:
  void Run(const std::stop_token& stop);
  // False when the pass has to end.
  bool Remove(const Garbage& item, int* removed);

  JobStore* const jobs_;
  ArtifactStore* const artifacts_;
  // By uid, jobs that could not be removed, each told in the log: whether the
  // passes leave it out until one finds nothing else.
  std::map<std::string, bool> stuck_;
  int away_ = 0;  // answers in a row, in this pass, that the store is away
  std::mutex mutex_;
  std::condition_variable_any woken_;
  bool wake_ = false;  // guarded by mutex_
  std::jthread thread_;
};

}  // namespace quantry::server
