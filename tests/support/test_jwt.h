// JSON Web Tokens for tests: signed by OpenSSL, so that nothing of the library
// under test is trusted to make them.
#pragma once

#include <memory>
#include <string>

namespace quantry::testing {

class JwtKey {
 public:
  enum class Kind { kRsa, kEc };
  // `bits`: of an RSA key.
  explicit JwtKey(Kind kind, int bits = 2048);
  ~JwtKey();

  // The public key as a JWK; `kid` may be empty.
  std::string Jwk(const std::string& kid) const;
  // header.payload.signature of two JSON texts, whatever the header says.
  std::string Sign(const std::string& header, const std::string& claims) const;

 private:
  struct Key;
  const Kind kind_;
  std::unique_ptr<Key> key_;
};

std::string Base64Url(const std::string& bytes);

}  // namespace quantry::testing
