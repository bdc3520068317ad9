#include "common/hub_uri.h"
#include "common/utf8_prefix.h"

#include <algorithm>

namespace quantry {
namespace {

constexpr std::string_view kScheme = "hf://";
constexpr std::string_view kWord =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
constexpr size_t kMaxPart = 96;
constexpr size_t kMaxRevision = 200;
constexpr size_t kCommitDigits = 40;

bool IsWord(std::string_view text, size_t most) {
  return !text.empty() && text.size() <= most && text.front() != '.' && text.front() != '-' &&
         text.find_first_not_of(kWord) == std::string_view::npos &&
         text.find("..") == std::string_view::npos;
}

bool IsRepo(std::string_view repo) {
  const size_t slash = repo.find('/');
  if (slash == std::string_view::npos) return IsWord(repo, kMaxPart);
  return IsWord(repo.substr(0, slash), kMaxPart) && IsWord(repo.substr(slash + 1), kMaxPart);
}

// Words with slashes between them: "refs/pr/3".
bool IsRevision(std::string_view revision) {
  for (size_t begin = 0; begin <= revision.size();) {
    const size_t end = std::min(revision.find('/', begin), revision.size());
    if (!IsWord(revision.substr(begin, end - begin), kMaxRevision)) return false;
    begin = end + 1;
  }
  return revision.size() <= kMaxRevision;
}

}  // namespace

bool HubUri::pinned() const {
  return revision.size() == kCommitDigits &&
         revision.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool IsHubUri(std::string_view uri) { return uri.substr(0, kScheme.size()) == kScheme; }

absl::StatusOr<HubUri> ParseHubUri(std::string_view uri) {
  HubUri parsed;
  if (IsHubUri(uri)) {
    const std::string_view rest = uri.substr(kScheme.size());
    const size_t at = rest.find('@');
    parsed.repo = std::string(rest.substr(0, at));
    if (at != std::string_view::npos) parsed.revision = std::string(rest.substr(at + 1));
  }
  if (IsRepo(parsed.repo) && IsRevision(parsed.revision)) return parsed;
  return absl::InvalidArgumentError("wanted hf://ORG/NAME or hf://ORG/NAME@REVISION, got \"" +
                                    Utf8Prefix(uri, 200) + "\"");
}

}  // namespace quantry
