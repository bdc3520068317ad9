#include "server/auth/authenticator.h"

#include <sys/stat.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "common/certificates.h"
#include "common/digest.h"
#include "common/errors.h"

namespace quantry::server {
namespace {

absl::Status Refused(std::string_view cause, std::string_view message) {
  return MakeError(Reason::kUnauthenticated, message, {{"cause", std::string(cause)}});
}

std::string Iso(Time time) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromChrono(time), absl::UTCTimeZone());
}

// Changes whenever the file does: links that are swapped have another inode.
std::string StampOf(const std::string& path) {
  struct stat info {};
  if (path.empty() || stat(path.c_str(), &info) != 0) return "";
  return absl::StrCat(info.st_dev, ":", info.st_ino, ":", info.st_size, ":", info.st_mtim.tv_sec,
                      ".", info.st_mtim.tv_nsec);
}

// The scheme's name is case-insensitive (RFC 7235).
absl::StatusOr<std::string_view> TokenOf(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  const std::string scheme = absl::AsciiStrToLower(std::string(header.substr(0, kScheme.size())));
  const std::string_view token =
      scheme == kScheme ? header.substr(kScheme.size()) : std::string_view();
  if (token.empty() || token.find_first_of(" \t,") != std::string_view::npos) {
    return Refused("malformed", "authorization: wanted 'Bearer TOKEN', got something else");
  }
  return token;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::Open(Options options) {
  std::unique_ptr<Authenticator> opened(new Authenticator(std::move(options)));
  opened->table_ = std::make_shared<PrincipalTable>();
  if (auto loaded = opened->Reload(); !loaded.ok()) return loaded.status();
  return opened;
}

void Authenticator::Trust(std::string_view token, const Principal& principal) {
  const std::lock_guard lock(mutex_);
  own_token_sha256_ = Sha256Hex(token);
  own_principal_ = principal;
}

template <class Value, class Load>
absl::StatusOr<bool> Authenticator::ReloadOne(const std::string& path, std::string* stamp,
                                              std::shared_ptr<const Value>* value,
                                              const Load& load) {
  if (path.empty()) return false;
  const std::string now = StampOf(path);
  {
    const std::lock_guard lock(mutex_);
    if (!now.empty() && now == *stamp) return false;
  }
  auto loaded = load();
  if (!loaded.ok()) return loaded.status();
  const std::lock_guard lock(mutex_);
  *value = *std::move(loaded);
  *stamp = now;
  checked_jwts_.clear();
  ++generation_;
  return true;
}

absl::StatusOr<bool> Authenticator::Reload() {
  const auto table = ReloadOne(options_.principals_file, &table_stamp_, &table_,
                               [this]() -> absl::StatusOr<std::shared_ptr<const PrincipalTable>> {
                                 auto read = PrincipalTable::Load(options_.principals_file);
                                 if (!read.ok()) return read.status();
                                 return std::make_shared<const PrincipalTable>(*std::move(read));
                               });
  const auto keys = ReloadOne(options_.jwks_file, &jwt_stamp_, &jwt_, [this] {
    return JwtVerifier::Load(options_.jwks_file, options_.jwt);
  });
  // One that fails does not hide that the other changed.
  if (!table.ok()) return table.status();
  if (!keys.ok()) return keys.status();
  return *table || *keys;
}

std::shared_ptr<const PrincipalTable> Authenticator::table() const {
  const std::lock_guard lock(mutex_);
  return table_;
}

absl::StatusOr<Principal> Authenticator::Authenticate(const Presented& presented, Time now) const {
  absl::StatusOr<Principal> principal = Refused(
      "missing", "wanted a bearer token or a client certificate, got neither; say who you are");
  if (!presented.authorization.empty()) {
    auto token = TokenOf(presented.authorization);
    if (!token.ok()) return token.status();
    principal = ByToken(*token, now);
  } else if (options_.certificates && !presented.certificate_pem.empty()) {
    principal = ByCertificate(presented.certificate_pem);
  }
  if (principal.ok() && principal->expire_time && *principal->expire_time <= now) {
    return Refused("expired", absl::StrCat("the credential of ", principal->name, " ended ",
                                           Iso(*principal->expire_time), "; get a new one"));
  }
  return principal;
}

absl::StatusOr<Principal> Authenticator::ByToken(std::string_view token, Time now) const {
  {
    const std::lock_guard lock(mutex_);
    if (!own_token_sha256_.empty() && Sha256Hex(token) == own_token_sha256_) return own_principal_;
  }
  if (const auto principals = table(); const Principal* found = principals->FindToken(token)) {
    return *found;
  }
  if (!options_.jwks_file.empty() && LooksLikeJwt(token)) return ByJwt(token, now);
  return Refused("unknown",
                 "the token is none of this server's: it was withdrawn, or is for another server");
}

absl::StatusOr<Principal> Authenticator::ByJwt(std::string_view token, Time now) const {
  constexpr size_t kMostChecked = 4096;
  const std::string hash = Sha256Hex(token);
  std::shared_ptr<const JwtVerifier> jwt;
  std::uint64_t generation = 0;
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = checked_jwts_.find(hash); found != checked_jwts_.end()) {
      return found->second;
    }
    jwt = jwt_;
    generation = generation_;
  }
  auto principal = jwt->Verify(token, now);
  if (!principal.ok()) return Refused("unknown", std::string(principal.status().message()));
  const std::lock_guard lock(mutex_);
  if (checked_jwts_.size() >= kMostChecked) checked_jwts_.clear();
  if (generation == generation_) checked_jwts_.emplace(hash, *principal);
  return principal;
}

absl::StatusOr<Principal> Authenticator::ByCertificate(const std::string& pem) const {
  auto facts = ReadCertificate(pem);
  if (!facts.ok()) return Refused("certificate", std::string(facts.status().message()));
  const auto principals = table();
  absl::StatusOr<Principal> found = absl::InvalidArgumentError("it has no URI name");
  // SPIFFE: exactly one. With more, which one is meant?
  if (facts->uris.size() > 1) {
    found = absl::InvalidArgumentError(
        absl::StrCat("wanted one URI name, got ", absl::StrJoin(facts->uris, ", ")));
  } else if (facts->uris.size() == 1) {
    const Principal* line = principals->FindCertificate(facts->uris[0]);
    found = line != nullptr ? absl::StatusOr<Principal>(*line)
                            : PrincipalOfSpiffeId(facts->uris[0], options_.spiffe_trust_domain);
  }
  if (!found.ok()) {
    return Refused("certificate", absl::StrCat("the client certificate names nobody: ",
                                               std::string(found.status().message())));
  }
  if (!found->expire_time || *found->expire_time > facts->not_after) {
    found->expire_time = facts->not_after;
  }
  return found;
}

}  // namespace quantry::server
