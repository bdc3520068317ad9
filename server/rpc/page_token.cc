#include "server/rpc/page_token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <fstream>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "server/artifacts/file_ops.h"

namespace quantry::server {
namespace {

constexpr size_t kKeyBytes = 32;
constexpr size_t kSignatureBytes = 16;
constexpr size_t kMaxTokenBytes = 512;

absl::Status BadToken() {
  return MakeError(Reason::kInvalidPageToken,
                   "the page token is not one this server made for this list and filter; start "
                   "over without it");
}

}  // namespace

absl::StatusOr<PageTokens> PageTokens::Open(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  if (text.str().size() == kKeyBytes) return PageTokens(text.str());
  auto key = NewKey();
  if (!key.ok()) return key.status();
  if (absl::Status status = WriteFileAtomically(path, *key); !status.ok()) return status;
  return PageTokens(*std::move(key));
}

absl::StatusOr<std::string> PageTokens::NewKey() {
  std::string key(kKeyBytes, '\0');
  if (RAND_bytes(reinterpret_cast<unsigned char*>(key.data()), kKeyBytes) == 1) return key;
  return MakeError(Reason::kInternal, "the system gave no random bytes");
}

// HMAC-SHA256 over length-prefixed parts, so that no two splits look alike.
std::string PageTokens::Signature(std::string_view scope, std::string_view payload) const {
  const std::string text =
      absl::StrCat(scope.size(), ":", std::string(scope), ":", std::string(payload));
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  HMAC(EVP_sha256(), key_.data(), static_cast<int>(key_.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest, &size);
  return {reinterpret_cast<const char*>(digest), kSignatureBytes};
}

std::string PageTokens::StoreId() const {
  return absl::BytesToHexString(Signature("store id", ""));
}

std::string PageTokens::Seal(std::string_view scope, std::string payload) const {
  return absl::WebSafeBase64Escape(Signature(scope, payload) + payload);
}

absl::StatusOr<std::string> PageTokens::Unseal(std::string_view scope,
                                               std::string_view token) const {
  std::string sealed;
  if (token.size() > kMaxTokenBytes ||
      !absl::WebSafeBase64Unescape({token.data(), token.size()}, &sealed) ||
      sealed.size() < kSignatureBytes) {
    return BadToken();
  }
  std::string payload = sealed.substr(kSignatureBytes);
  const std::string wanted = Signature(scope, payload);
  if (CRYPTO_memcmp(wanted.data(), sealed.data(), kSignatureBytes) != 0) return BadToken();
  return payload;
}

std::string PageTokens::Encode(std::string_view scope, const Cursor& cursor) const {
  return Seal(scope, absl::StrCat(ToUnixMicros(cursor.create_time), " ", cursor.uid));
}

std::string PageTokens::Encode(std::string_view scope, std::int64_t sequence) const {
  return Seal(scope, absl::StrCat(sequence));
}

std::string PageTokens::EncodeId(std::string_view scope, const std::string& id) const {
  return Seal(scope, id);
}

absl::StatusOr<std::string> PageTokens::DecodeId(std::string_view scope,
                                                 std::string_view token) const {
  return Unseal(scope, token);
}

absl::StatusOr<Cursor> PageTokens::DecodeCursor(std::string_view scope,
                                                std::string_view token) const {
  auto payload = Unseal(scope, token);
  if (!payload.ok()) return payload.status();
  const size_t space = payload->find(' ');
  std::int64_t micros = 0;
  if (space == std::string::npos || !absl::SimpleAtoi(payload->substr(0, space), &micros)) {
    return BadToken();
  }
  return Cursor{.create_time = FromUnixMicros(micros), .uid = payload->substr(space + 1)};
}

absl::StatusOr<std::int64_t> PageTokens::DecodeSequence(std::string_view scope,
                                                        std::string_view token) const {
  auto payload = Unseal(scope, token);
  if (!payload.ok()) return payload.status();
  std::int64_t sequence = 0;
  if (!absl::SimpleAtoi(*payload, &sequence)) return BadToken();
  return sequence;
}

}  // namespace quantry::server
