#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace quantry::agent {

// A file that an engine wrote, open for reading. Engines parse hostile files and
// may have been taken over, and the agent may read what they may not (other
// tenants' blobs, its own keys): a link must never lead it elsewhere. Owns the
// descriptor. Thread-safe.
class EngineFile {
 public:
  // `name` below `folder`, which the agent made. PERMISSION_DENIED when it is a
  // link, lies behind one, or is no regular file; else as OpenBeneath.
  static absl::StatusOr<EngineFile> Open(const std::string& folder, const std::string& name);

  // Stands for this very file as long as the object lives, whatever the engine
  // does with its name.
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }
  std::int64_t size_bytes() const { return size_bytes_; }  // when it was opened

  // The whole file. RESOURCE_EXHAUSTED when it is larger than `max_bytes`.
  absl::StatusOr<std::string> Read(std::int64_t max_bytes) const;

 private:
  EngineFile(UniqueFd fd, std::int64_t size_bytes) : fd_(std::move(fd)), size_bytes_(size_bytes) {}

  UniqueFd fd_;
  std::int64_t size_bytes_;
};

}  // namespace quantry::agent
