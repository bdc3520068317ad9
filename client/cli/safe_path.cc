#include "client/cli/safe_path.h"

#include <algorithm>
#include <system_error>

#include "client/cli/errors.h"
#include "client/cli/text.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

constexpr size_t kMaxName = 1024;      // whole relative name
constexpr size_t kMaxComponent = 240;  // NAME_MAX less our own suffix

bool IsPlainComponent(std::string_view part) {
  return !part.empty() && part != "." && part != ".." && part.size() <= kMaxComponent &&
         std::none_of(part.begin(), part.end(),
                      [](unsigned char c) { return c == '\\' || c < 0x20 || c == 0x7f; });
}

bool IsPlainName(std::string_view name) {
  if (name.empty() || name.size() > kMaxName) return false;
  while (true) {
    const size_t slash = name.find('/');
    if (!IsPlainComponent(name.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    name.remove_prefix(slash + 1);
  }
}

// Keeps terminal escapes of a hostile name out of the message.
std::string Printable(std::string_view name) {
  std::string shown(name.substr(0, 200));
  std::replace_if(
      shown.begin(), shown.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return shown;
}

}  // namespace

absl::StatusOr<std::string> JoinBelow(std::string_view folder, std::string_view name) {
  if (!IsPlainName(name)) {
    return WithNext(
        MakeError(Reason::kArtifactCorrupt,
                  Cat("the artifact names a file \"", Printable(name),
                      "\": wanted a plain relative name that stays below the target folder"),
                  {{"path", Printable(name)}}),
        "nothing was written; do not use this artifact and tell the operator of the server");
  }
  return Cat(folder, folder.empty() || folder.back() == '/' ? "" : "/", name);
}

absl::StatusOr<std::filesystem::file_status> LookAt(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status found = std::filesystem::status(path, error);
  if (std::filesystem::status_known(found)) return found;
  return WithNext(
      absl::FailedPreconditionError(Cat("cannot look at \"", path, "\": ", error.message())),
      "choose a folder you may use");
}

}  // namespace quantry::cli
