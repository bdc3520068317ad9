#include "server/artifacts/root_owner.h"

#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace quantry::server {
namespace {

constexpr std::string_view kOwner = "quantry-store";
constexpr std::int64_t kMaxOwnerBytes = 1024;

}  // namespace

absl::Status ClaimRoot(Storage& root, const std::string& uri, const std::string& store_id,
                       bool dry_run) {
  const auto owner = root.Read(kOwner, kMaxOwnerBytes);
  if (absl::IsNotFound(owner.status())) {
    return dry_run ? absl::OkStatus() : root.Write(kOwner, store_id + "\n");
  }
  if (!owner.ok()) return owner.status();
  const std::string got(absl::StripAsciiWhitespace(*owner));
  if (got == store_id) return absl::OkStatus();
  return MakeError(
      Reason::kInvalidConfig,
      absl::StrCat(uri, ": wanted a root of this job store (", store_id,
                   "), got one of another (its object ", std::string(kOwner), " says ", got,
                   "), whose files would be taken for garbage; give each job store "
                   "roots of its own, or remove that object when the other is gone"),
      {{"root", uri}, {"wanted", store_id}, {"got", got}});
}

}  // namespace quantry::server
