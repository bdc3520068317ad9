#include "worker/engine/pipeline/source_watch.h"

#include <sys/stat.h>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/sha256.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

std::optional<SourceWatch::Identity> SourceWatch::IdentityOf(const std::string& path) {
  struct stat status = {};
  if (!IsRegularFile(path) || ::stat(path.c_str(), &status) != 0) return std::nullopt;
  constexpr int64_t kNsPerSecond = 1'000'000'000;
  return Identity{status.st_dev, status.st_ino, status.st_size,
                  status.st_mtim.tv_sec * kNsPerSecond + status.st_mtim.tv_nsec};
}

void SourceWatch::Note(const std::string& path) { files_[path] = {IdentityOf(path)}; }

void SourceWatch::SetDigest(const std::string& path, const std::string& sha256) {
  files_.at(path).sha256 = sha256;
}

void SourceWatch::Check() {
  for (auto& [path, file] : files_) {
    const std::optional<Identity> now = IdentityOf(path);
    if (now == file.identity) continue;
    const bool there = now.has_value();
    if (there && !file.sha256.empty() && Sha256OfFile(path).sha256 == file.sha256) {
      file.identity = now;
      continue;
    }
    throw UserError("SOURCE_CHANGED",
                    StrCat(path, there ? (file.identity ? " changed" : " came") : " went",
                           " while the job ran: what was made of it would be of two models. Leave "
                           "the model's folder alone and run the job again"),
                    {{"path", path}});
  }
}

}  // namespace quantry::engine
