#include "worker/agent/file_check.h"

#include "common/digest.h"

namespace quantry::agent {

absl::StatusOr<bool> HasSha256(const std::string& path, const std::string& sha256,
                               const TransferCheck& check) {
  absl::Status stopped;
  const auto digest =
      Sha256File(path, [&] { return stopped = check ? check(0) : absl::OkStatus(); });
  if (!stopped.ok()) return stopped;
  return digest.ok() && digest->sha256 == sha256;
}

}  // namespace quantry::agent
