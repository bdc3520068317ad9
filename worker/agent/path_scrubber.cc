#include "worker/agent/path_scrubber.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "common/storage.h"

namespace quantry::agent {
namespace {

// Whether a character may go on a path's last name, so that "/work" is not
// found in "/workers".
bool GoesOn(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-';
}

}  // namespace

PathScrubber::PathScrubber(const std::string& work_dir, const AttemptDir& attempt,
                           const v1::Lease& lease) {
  Add(attempt.root, "the attempt's folder");
  Add(work_dir, "the work folder");
  AddUri(lease.output_uri(), "the artifact's folder");
  AddUri(lease.checkpoint_uri(), "the checkpoint's folder");
  AddUri(lease.resume().uri(), "the checkpoint's folder");
  AddUri(lease.blob_uri(), "the blob store");
  std::stable_sort(folders_.begin(), folders_.end(),
                   [](const Folder& a, const Folder& b) { return a.path.size() > b.path.size(); });
}

void PathScrubber::Add(std::string path, std::string label) {
  while (path.ends_with('/')) path.pop_back();
  if (!path.empty()) folders_.push_back({std::move(path), std::move(label)});
}

void PathScrubber::AddUri(const std::string& uri, const std::string& label) {
  const std::string bare = uri.substr(0, uri.find('?'));
  Add(bare, label);
  if (const auto path = LocalPathFromUri(bare); path.ok()) Add(*path, label);
  if (!bare.starts_with("file:")) Add(ObjectPathOf(bare), label);
}

std::string PathScrubber::Scrub(std::string_view text) const {
  std::string clean(text);
  for (const Folder& folder : folders_) {
    for (std::size_t at = 0; (at = clean.find(folder.path, at)) != std::string::npos;) {
      const std::size_t end = at + folder.path.size();
      if (end < clean.size() && clean[end] == '/' && end + 1 < clean.size() &&
          GoesOn(clean[end + 1])) {
        clean.erase(at, folder.path.size() + 1);
      } else if (end < clean.size() && GoesOn(clean[end])) {
        at = end;
      } else {
        const std::size_t slash = end < clean.size() && clean[end] == '/' ? 1 : 0;
        clean.replace(at, folder.path.size() + slash, folder.label);
        at += folder.label.size();
      }
    }
  }
  return clean;
}

}  // namespace quantry::agent
