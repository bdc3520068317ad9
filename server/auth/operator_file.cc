#include "server/auth/operator_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "google/protobuf/util/json_util.h"

namespace quantry::server {
namespace {

constexpr size_t kMaxLineBytes = 16 << 10;

absl::Status BadEntry(std::string_view source, const std::string& what) {
  return MakeError(Reason::kInvalidConfig, absl::StrCat(std::string(source), ": ", what),
                   {{"file", std::string(source)}});
}

}  // namespace

absl::StatusOr<std::string> ReadOperatorFile(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & S_IWOTH) != 0) {
    return BadEntry(
        path, "everybody may write this file and so give himself rights; run chmod o-w on it");
  }
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return BadEntry(path, absl::StrCat("wanted a readable file: ", std::strerror(errno)));
  return text.str();
}

absl::Status ParseOperatorLines(std::string_view text, std::string_view source,
                                std::string_view keys, google::protobuf::Message* entry,
                                const std::function<absl::Status()>& take) {
  std::istringstream lines{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos || line[0] == '#') continue;
    const std::string where = absl::StrCat(std::string(source), ":", number);
    if (line.size() > kMaxLineBytes) return BadEntry(where, "wanted at most 16384 bytes, got more");
    entry->Clear();
    const auto parsed = google::protobuf::util::JsonStringToMessage(line, entry);
    if (!parsed.ok()) {
      return BadEntry(where, absl::StrCat("wanted one JSON object with ", std::string(keys), ": ",
                                          std::string(parsed.message())));
    }
    if (absl::Status status = take(); !status.ok()) {
      return BadEntry(where, std::string(status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace quantry::server
