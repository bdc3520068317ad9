#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/work_dir.h"

namespace quantry::agent {

// Takes this machine's own folders out of texts that go to the job's owner:
// "/scratch/jobs/u/1/model/config.json" becomes "model/config.json". What the
// owner named himself (local paths, source URIs) stays. Immutable.
class PathScrubber {
 public:
  // The attempt's scratch folder, the work folder, and where the lease stores
  // artifacts, checkpoints and blobs.
  PathScrubber(const std::string& work_dir, const AttemptDir& attempt, const v1::Lease& lease);

  std::string Scrub(std::string_view text) const;

 private:
  struct Folder {
    std::string path;   // without a slash at the end
    std::string label;  // what stands for the folder itself
  };
  void Add(std::string path, std::string label);
  void AddUri(const std::string& uri, const std::string& label);

  std::vector<Folder> folders_;  // longest path first
};

}  // namespace quantry::agent
