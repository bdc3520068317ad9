// The principals file (proto/quantry/v1/principals.proto): who may call, by
// hash of a token or by the URI of a client certificate. Tokens are 256 random
// bits, so a plain sha256 keeps them; the file gives none away.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quantry/v1/principals.pb.h"
#include "server/auth/principal.h"

namespace quantry::server {

// Immutable once parsed; thread-safe.
class PrincipalTable {
 public:
  // INVALID_ARGUMENT INVALID_CONFIG names `source`, the line and what is wrong.
  static absl::StatusOr<PrincipalTable> Parse(std::string_view text, std::string_view source);
  // Reads the file; also refuses one that everybody may write.
  static absl::StatusOr<PrincipalTable> Load(const std::string& path);

  // null when nobody has it. Expired ones are found too.
  const Principal* FindToken(std::string_view token) const;
  const Principal* FindCertificate(const std::string& uri) const;

  size_t size() const { return tokens_.size() + certificates_.size(); }

 private:
  absl::Status Add(const v1::PrincipalEntry& entry);

  std::map<std::string, Principal> tokens_;        // by hex sha256
  std::map<std::string, Principal> certificates_;  // by URI
};

// "qtk_" and 43 characters of base64url: 256 bits of the system's generator.
// The fixed start lets scanners of leaked secrets find it.
std::string NewToken();

// Adds the line at the end; makes the file with mode 0600. Replaces it whole, so
// that a server never reads half a line. One writer at a time.
absl::Status AppendPrincipal(const std::string& path, const v1::PrincipalEntry& entry);

}  // namespace quantry::server
