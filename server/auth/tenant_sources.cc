#include "server/auth/tenant_sources.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/ids.h"
#include "server/auth/operator_file.h"

namespace quantry::server {
namespace {

constexpr std::string_view kEverybody = "*";
constexpr std::string_view kHub = "hf://";
constexpr std::array<std::string_view, 4> kSchemes = {"s3://", "gs://", "abfs://", kHub};

// Where the part after "scheme://" begins; 0 for another scheme.
size_t RestOf(std::string_view uri) {
  for (const std::string_view scheme : kSchemes) {
    if (uri.starts_with(scheme)) return scheme.size();
  }
  return 0;
}

// Before and after the "?".
std::pair<std::string_view, std::string_view> SplitQuery(std::string_view uri) {
  const size_t mark = std::min(uri.find('?'), uri.size());
  return {uri.substr(0, mark), uri.substr(mark)};
}

// Of "scheme://a/b": every part says what it is. One slash may end it.
bool IsPlain(std::string_view path) {
  const size_t rest = RestOf(path);
  if (rest == 0 || path.find_first_of("%#\\") != std::string_view::npos) return false;
  if (path.back() == '/') path.remove_suffix(1);
  for (size_t begin = rest; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

bool LiesBelowOne(const std::vector<std::string>& roots, const std::string& folder) {
  return std::any_of(roots.begin(), roots.end(), [&](const std::string& root) {
    return folder == root || root == "/" || folder.starts_with(root + "/");
  });
}

}  // namespace

bool IsBelow(std::string_view prefix, std::string_view uri) {
  const auto [folder, folder_query] = SplitQuery(prefix);
  const auto [path, query] = SplitQuery(uri);
  if (!IsPlain(path) || query != folder_query) return false;
  std::string_view base = folder;
  if (base.size() > RestOf(base) && base.back() == '/') base.remove_suffix(1);
  if (!path.starts_with(base)) return false;
  if (path.size() == base.size() || base.back() == '/') return true;
  const char next = path[base.size()];
  // A hub's revision belongs to the repository named before it.
  return next == '/' || (next == '@' && base.starts_with(kHub));
}

absl::StatusOr<TenantSources> TenantSources::Open(const std::vector<std::string>& roots,
                                                  const std::string& file) {
  TenantSources sources;
  auto opened = LocalRoots::Open(roots);
  if (!opened.ok()) return opened.status();
  sources.roots_ = *std::move(opened);
  if (file.empty()) return sources;
  sources.limited_ = true;
  auto text = ReadOperatorFile(file);
  if (!text.ok()) return text.status();
  v1::TenantSources entry;
  absl::Status status = ParseOperatorLines(*text, file, "tenant, uri_prefixes and local_roots",
                                           &entry, [&] { return sources.Add(entry); });
  if (!status.ok()) return status;
  return sources;
}

absl::Status TenantSources::Add(const v1::TenantSources& entry) {
  if (entry.tenant() != kEverybody) {
    if (absl::Status status = ValidateTenant(entry.tenant()); !status.ok()) return status;
  }
  for (const std::string& prefix : entry.uri_prefixes()) {
    const std::string_view path = SplitQuery(prefix).first;
    if (IsPlain(path)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "uri_prefixes: wanted s3://BUCKET/FOLDER, gs://, abfs:// or hf://, without %, #, \\ and "
        "parts that are empty, '.' or '..'; folders of this machine go into local_roots; got '",
        prefix, "'"));
  }
  std::vector<std::string> folders;
  for (std::string folder : entry.local_roots()) {
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    if (folder.find("/..") != std::string::npos || !LiesBelowOne(roots_.paths(), folder)) {
      return absl::InvalidArgumentError(
          absl::StrCat("local_roots: wanted folders below --local-roots (",
                       absl::StrJoin(roots_.paths(), ", "), "), got '", folder, "'"));
    }
    folders.push_back(std::move(folder));
  }
  auto roots = LocalRoots::Open(folders);
  if (!roots.ok()) return roots.status();
  const bool added =
      tenants_
          .emplace(entry.tenant(),
                   Sources{{entry.uri_prefixes().begin(), entry.uri_prefixes().end()},
                           *std::move(roots)})
          .second;
  if (added) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tenant: wanted one line a tenant, got another of '", entry.tenant(), "'"));
}

const TenantSources::Sources& TenantSources::Of(const std::string& tenant) const {
  auto found = tenants_.find(tenant);
  if (found == tenants_.end()) found = tenants_.find(std::string(kEverybody));
  return found == tenants_.end() ? nothing_ : found->second;
}

bool TenantSources::MayRead(const std::string& tenant, std::string_view uri) const {
  if (!limited_) return true;
  const std::vector<std::string>& prefixes = Of(tenant).prefixes;
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return IsBelow(prefix, uri); });
}

std::string TenantSources::PrefixesOf(const std::string& tenant) const {
  const std::vector<std::string>& prefixes = Of(tenant).prefixes;
  return prefixes.empty() ? "none" : absl::StrJoin(prefixes, ", ");
}

const LocalRoots& TenantSources::RootsOf(const std::string& tenant) const {
  return limited_ ? Of(tenant).roots : roots_;
}

}  // namespace quantry::server
