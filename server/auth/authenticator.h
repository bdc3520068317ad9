// Who calls: bearer tokens of the principals file, JWTs, client certificates
// that the handshake has verified. What a caller may do is server/rpc/permissions.h.
//
// The files are read by Open and by every Reload that finds them changed; a
// file that cannot be used leaves what was read before in force. All methods
// are thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "server/auth/jwt.h"
#include "server/auth/principal.h"
#include "server/auth/principals_file.h"

namespace quantry::server {

// What a call carries. Secret: never logged.
struct Presented {
  std::string authorization = {};    // the header: "Bearer ..."
  std::string certificate_pem = {};  // of the connection, verified; "" without one
};

class Authenticator {
 public:
  struct Options {
    std::string principals_file = {};      // "": none
    bool certificates = false;             // client certificates count
    std::string spiffe_trust_domain = {};  // for those without a line in the file
    std::string jwks_file = {};            // "": no JWTs
    JwtRules jwt = {};
  };

  // INVALID_ARGUMENT INVALID_CONFIG names the file and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Authenticator>> Open(Options options);

  // A token of this process, beside the files: for the embedded agent.
  void Trust(std::string_view token, const Principal& principal);

  // A token beats a certificate. UNAUTHENTICATED with metadata "cause":
  // missing, malformed, unknown, expired or certificate.
  absl::StatusOr<Principal> Authenticate(const Presented& presented, Time now) const;

  // True when something changed; then generation() has grown.
  absl::StatusOr<bool> Reload();
  // Grows with each change: who was let in before should be asked again.
  std::uint64_t generation() const { return generation_; }

 private:
  explicit Authenticator(Options options) : options_(std::move(options)) {}
  absl::StatusOr<Principal> ByToken(std::string_view token, Time now) const;
  absl::StatusOr<Principal> ByJwt(std::string_view token, Time now) const;
  absl::StatusOr<Principal> ByCertificate(const std::string& pem) const;
  std::shared_ptr<const PrincipalTable> table() const;
  // Reads the file if it changed since `stamp`, and gives the value and the
  // stamp to those of this object.
  template <class Value, class Load>
  absl::StatusOr<bool> ReloadOne(const std::string& path, std::string* stamp,
                                 std::shared_ptr<const Value>* value, const Load& load);

  const Options options_;
  std::atomic<std::uint64_t> generation_{0};
  mutable std::mutex mutex_;
  std::shared_ptr<const PrincipalTable> table_;  // guarded by mutex_; the value is immutable
  std::string table_stamp_;                      // of the file as last read; guarded by mutex_
  std::shared_ptr<const JwtVerifier> jwt_;       // guarded by mutex_; null without a JWKS
  std::string jwt_stamp_;                        // guarded by mutex_
  // What a signature was checked for already, by sha256 of the token; emptied
  // when keys change and when it is full. Guarded by mutex_.
  mutable std::map<std::string, Principal> checked_jwts_;
  std::string own_token_sha256_;  // guarded by mutex_
  Principal own_principal_;       // guarded by mutex_
};

}  // namespace quantry::server
