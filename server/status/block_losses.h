#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

struct BlockLoss {
  double rtn = 0;    // rounding to nearest
  double final = 0;  // the method's result
};
using BlockLosses = std::map<int, BlockLoss>;  // by block

// The losses of a job's blocks, gathered from its events as they come: each
// look reads only what is new, at most a bounded number of events, so that a
// long history is caught up with over several looks. One thread.
class LossTrails {
 public:
  explicit LossTrails(JobStore* store) : store_(store) {}

  // What is known of the job now. Store errors leave it as it was.
  const BlockLosses& Look(const Job& job);
  // Forgets all jobs but these (uids).
  void KeepOnly(const std::set<std::string>& uids);

 private:
  struct Trail {
    int64_t sequence = 0;  // of the newest event read
    BlockLosses losses;
  };

  JobStore* store_;
  std::map<std::string, Trail> trails_;  // by uid
};

}  // namespace quantry::server
