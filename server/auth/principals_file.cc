#include "server/auth/principals_file.h"

#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/errors.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/time_util.h"
#include "server/artifacts/file_ops.h"
#include "server/auth/operator_file.h"

namespace quantry::server {
namespace {

using google::protobuf::util::TimeUtil;

}  // namespace

absl::StatusOr<PrincipalTable> PrincipalTable::Parse(std::string_view text,
                                                     std::string_view source) {
  PrincipalTable table;
  v1::PrincipalEntry entry;
  absl::Status status = ParseOperatorLines(
      text, source, "principal, role, tenant and token_sha256 or certificate_uri", &entry,
      [&] { return table.Add(entry); });
  if (!status.ok()) return status;
  return table;
}

absl::Status PrincipalTable::Add(const v1::PrincipalEntry& entry) {
  auto principal = MakePrincipal(entry.principal(), entry.role(), entry.tenant());
  if (!principal.ok()) return principal.status();
  if (entry.has_expire_time()) {
    principal->expire_time = FromUnixMicros(TimeUtil::TimestampToMicroseconds(entry.expire_time()));
  }
  const bool has_token = !entry.token_sha256().empty();
  if (has_token == !entry.certificate_uri().empty()) {
    return absl::InvalidArgumentError("wanted exactly one of token_sha256 and certificate_uri");
  }
  if (has_token && !IsSha256Hex(entry.token_sha256())) {
    return absl::InvalidArgumentError("token_sha256: wanted 64 lower-case hex digits");
  }
  const bool added = has_token ? tokens_.emplace(entry.token_sha256(), *principal).second
                               : certificates_.emplace(entry.certificate_uri(), *principal).second;
  if (added) return absl::OkStatus();
  return absl::InvalidArgumentError("this token or certificate is in an earlier line too");
}

absl::StatusOr<PrincipalTable> PrincipalTable::Load(const std::string& path) {
  auto text = ReadOperatorFile(path);
  if (!text.ok()) return text.status();
  return Parse(*text, path);
}

const Principal* PrincipalTable::FindToken(std::string_view token) const {
  const auto found = tokens_.find(Sha256Hex(token));
  return found == tokens_.end() ? nullptr : &found->second;
}

const Principal* PrincipalTable::FindCertificate(const std::string& uri) const {
  const auto found = certificates_.find(uri);
  return found == certificates_.end() ? nullptr : &found->second;
}

std::string NewToken() {
  std::array<char, 32> bytes{};
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), bytes.size()) != 1) {
    std::abort();  // a guessable token is worse than none
  }
  std::string text = absl::WebSafeBase64Escape(absl::string_view(bytes.data(), bytes.size()));
  return absl::StrCat("qtk_", text);
}

absl::Status AppendPrincipal(const std::string& path, const v1::PrincipalEntry& entry) {
  const std::string absolute = std::filesystem::absolute(path).string();
  std::string text;
  struct stat info {};
  const bool existed = stat(path.c_str(), &info) == 0;
  if (existed) {
    auto before = ReadOperatorFile(path);
    if (!before.ok()) return before.status();
    text = *std::move(before);
    if (!text.empty() && text.back() != '\n') text.push_back('\n');
  }
  std::string line;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  if (!google::protobuf::util::MessageToJsonString(entry, &line, options).ok()) {
    return MakeError(Reason::kInternal, "the entry does not print as JSON");
  }
  absl::StrAppend(&text, line, "\n");
  if (auto table = PrincipalTable::Parse(text, path); !table.ok()) return table.status();
  if (absl::Status status = WriteFileAtomically(absolute, text); !status.ok()) return status;
  if (!existed) return absl::OkStatus();
  // The server may run as another user than the one who adds the line.
  if (chown(absolute.c_str(), info.st_uid, info.st_gid) != 0 ||
      chmod(absolute.c_str(), info.st_mode & 07777) != 0) {
    return DiskError("keep the owner and mode of", absolute, errno);
  }
  return absl::OkStatus();
}

}  // namespace quantry::server
