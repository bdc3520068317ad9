// JSON Web Tokens (RFC 7519) signed with RS256 or ES256 by a key of a JWKS
// file. Signatures are libjose's; what the claims must say is decided here.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/auth/principal.h"

namespace quantry::server {

struct JwtRules {
  std::string issuer = {};    // iss must be it
  std::string audience = {};  // aud must be it or have it
};

// Immutable; thread-safe.
class JwtVerifier {
 public:
  // Public keys of type RSA (2048 bits or more) and EC P-256 alone: a file with a
  // symmetric or private key is refused, as one without keys. INVALID_ARGUMENT
  // INVALID_CONFIG names the file and the key.
  static absl::StatusOr<std::shared_ptr<const JwtVerifier>> Load(const std::string& jwks_file,
                                                                 JwtRules rules);
  virtual ~JwtVerifier() = default;

  // sub, quantry_role and quantry_tenant make the principal, exp (wanted) its
  // end; nbf is kept with half a minute's grace. An expired token gives an
  // expired principal. INVALID_ARGUMENT says what is wrong; no claim is
  // believed before the signature.
  virtual absl::StatusOr<Principal> Verify(std::string_view token, Time now) const = 0;
};

// Three parts of base64url: a JWT or nothing of ours.
bool LooksLikeJwt(std::string_view token);

}  // namespace quantry::server
