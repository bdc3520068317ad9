#include "worker/agent/local_source.h"

#include "common/confined.h"
#include "common/errors.h"

namespace quantry::agent {

absl::StatusOr<std::string> ResolveBelowRoots(std::string_view path,
                                              const std::vector<std::string>& roots) {
  auto resolved = LocalRoots::OpenThoseHere(roots).Resolve(path);
  if (resolved.ok()) return resolved;
  const std::string text(path.substr(0, 500));
  if (absl::IsNotFound(resolved.status())) {
    return MakeError(Reason::kSourceMissing,
                     text + " does not exist here; check the path on the worker's machine",
                     {{"path", text}});
  }
  if (!absl::IsPermissionDenied(resolved.status())) return resolved;
  std::string names;
  for (const std::string& root : roots) names += (names.empty() ? "" : ", ") + root;
  if (names.empty()) names = "none";
  return MakeError(Reason::kSourceForbidden,
                   text + ": " + std::string(resolved.status().message()) +
                       "; allowed folders on this worker: " + names +
                       ". Move it below one of them, or upload it",
                   {{"path", text}, {"local_roots", names}});
}

}  // namespace quantry::agent
