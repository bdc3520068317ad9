#include "server/artifacts/object_root.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace quantry::server {
namespace {

// "s3://bucket/prefix/?a=b" -> "s3://bucket/prefix?a=b"
std::string WithoutSlash(const std::string& uri) {
  size_t end = std::min(uri.find('?'), uri.size());
  const std::string options = uri.substr(end);
  while (end > 0 && uri[end - 1] == '/') --end;
  return uri.substr(0, end) + options;
}

bool HasOption(const std::string& uri, std::string_view name) {
  const std::string option = absl::StrCat(std::string(name), "=");
  return uri.find("?" + option) != std::string::npos || uri.find("&" + option) != std::string::npos;
}

// Of abfs:// what stands before '@' is a container or an account, of gs:// "anonymous".
bool HoldsCredentials(const std::string& uri) {
  const size_t begin = uri.find("://") + 3;
  const size_t end = std::min(uri.find_first_of("/?", begin), uri.size());
  const std::string authority = uri.substr(begin, end - begin);
  const size_t at = authority.rfind('@');
  const std::string user = authority.substr(0, at == std::string::npos ? 0 : at);
  const bool is_name = user.empty() || (uri.starts_with("abfs") && user.find(':') == user.npos) ||
                       (uri.starts_with("g") && user == "anonymous");
  return !is_name || uri.find("secret") != std::string::npos ||
         uri.find("session_token") != std::string::npos || HasOption(uri, "sig");
}

// The environment variables that hold the credentials.
std::string_view VariablesOf(const std::string& uri) {
  if (uri.starts_with("abfs")) {
    return "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or "
           "AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET";
  }
  if (uri.starts_with("g")) return "GOOGLE_APPLICATION_CREDENTIALS, the name of a file";
  return "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...";
}

absl::Status Bad(std::string_view option, const std::string& uri, std::string_view why) {
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat(std::string(option), " ", uri, ": ", std::string(why)));
}

}  // namespace

absl::Status CheckRootUri(std::string_view option, const std::string& uri) {
  if (uri.starts_with("file:///")) return absl::OkStatus();
  if (uri.find("://") == std::string::npos || uri.find('%') != std::string::npos) {
    return Bad(option, uri,
               "wanted file:///FOLDER or a URI like s3://bucket/prefix without %-escapes");
  }
  if (!HoldsCredentials(uri)) return absl::OkStatus();
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat(std::string(option),
                                " holds credentials, which every worker and client would see; "
                                "give them by the environment (",
                                std::string(VariablesOf(uri)), ")"));
}

absl::StatusOr<ObjectRoot> OpenObjectRoot(std::string_view option, const std::string& uri) {
  if (absl::Status status = CheckRootUri(option, uri); !status.ok()) return status;
  const auto bad = [&](std::string_view why) { return Bad(option, uri, why); };
  ObjectRoot root{.uri = WithoutSlash(uri), .storage = nullptr};
  auto storage = OpenStorage(root.uri);
  if (!storage.ok()) return bad(std::string(storage.status().message()));
  root.storage = *std::move(storage);
  // Reading alone would not tell: a bucket that is absent looks like an empty one.
  constexpr std::string_view kProbe = "quantry-probe";
  absl::Status probe = root.storage->Write(kProbe, "written and removed at the start");
  if (probe.ok()) probe = root.storage->Delete(kProbe);
  if (!probe.ok()) {
    return bad(
        absl::StrCat("the store does not answer as it should: ", std::string(probe.message())));
  }
  return root;
}

absl::Status ObjectError(const absl::Status& status, std::string_view name) {
  const std::map<std::string, std::string> metadata = {{"path", std::string(name)}};
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return MakeError(Reason::kArtifactNotFound, message, metadata);
    case absl::StatusCode::kInvalidArgument:
      return MakeError(Reason::kInvalidArgument, message, metadata);
    default:
      return MakeError(Reason::kStorageError, message, metadata);
  }
}

}  // namespace quantry::server
