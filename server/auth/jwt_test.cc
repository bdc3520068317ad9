#include "server/auth/jwt.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/errors.h"
#include "gtest/gtest.h"
#include "server/auth/authenticator.h"
#include "tests/support/test_jwt.h"

namespace quantry::server {
namespace {

using testing::Base64Url;
using testing::JwtKey;

constexpr char kClaims[] =
    R"({"iss":"https://issuer","aud":"quantry","sub":"ann","exp":2000,"nbf":1000,)"
    R"("quantry_role":"submitter","quantry_tenant":"acme"})";
constexpr char kRs[] = R"({"alg":"RS256","kid":"r"})";
constexpr char kEs[] = R"({"alg":"ES256","kid":"e"})";

// Keys take a moment to make; all tests share them.
const JwtKey& Rsa() {
  static const JwtKey key(JwtKey::Kind::kRsa);
  return key;
}
const JwtKey& Ec() {
  static const JwtKey key(JwtKey::Kind::kEc);
  return key;
}

class Jwt : public ::testing::Test {
 protected:
  Jwt() : file_(::testing::TempDir() + "jwks-" + std::to_string(getpid())) {
    Write(Rsa().Jwk("r") + "," + Ec().Jwk("e"));
  }
  ~Jwt() override { std::filesystem::remove(file_); }

  void Write(const std::string& keys) {
    std::ofstream(file_ + ".new") << R"({"keys":[)" << keys << "]}";
    std::filesystem::rename(file_ + ".new", file_);
  }
  std::shared_ptr<const JwtVerifier> Load() {
    auto loaded = JwtVerifier::Load(file_, {.issuer = "https://issuer", .audience = "quantry"});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *loaded;
  }
  static Time At(std::int64_t seconds) { return Time(std::chrono::seconds(seconds)); }

  const std::string file_;
};

// kClaims with one text in place of another.
std::string With(const std::string& from, const std::string& to) {
  std::string claims = kClaims;
  const size_t at = claims.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return claims.replace(at, from.size(), to);
}

TEST_F(Jwt, BothAlgorithms) {
  const auto verifier = Load();
  for (const std::string& token : {Rsa().Sign(kRs, kClaims), Ec().Sign(kEs, kClaims),
                                   Rsa().Sign(R"({"alg":"RS256"})", kClaims)}) {
    const auto principal = verifier->Verify(token, At(1500));
    ASSERT_TRUE(principal.ok()) << principal.status();
    EXPECT_EQ(principal->name, "ann");
    EXPECT_EQ(principal->role, Role::kSubmitter);
    EXPECT_EQ(principal->tenant, "acme");
    EXPECT_EQ(principal->expire_time, At(2000));
  }
}

TEST_F(Jwt, ClaimsThatAreNotBelieved) {
  const auto verifier = Load();
  struct Case {
    std::string claims;
    const char* wanted;
  };
  const Case cases[] = {
      {With("https://issuer", "https://issuer/"), "wanted iss https://issuer"},
      {With(R"("iss":"https://issuer",)", ""), "wanted iss"},
      {With("\"quantry\"", "\"other\""), "wanted aud quantry"},
      {With("\"quantry\"", R"(["a","b"])"), "wanted aud quantry"},
      {With("\"quantry\"", "7"), "wanted aud quantry"},
      {With("2000", "\"2000\""), "wanted exp as a number"},
      {With(R"("exp":2000,)", ""), "wanted exp"},
      {With("2000", "1e300"), "wanted exp"},
      {With("2000", "-1"), "wanted exp"},
      {With("1000", "1531"), "nbf is to come"},
      {With("1000", "\"x\""), "wanted nbf as a number"},
      {With("submitter", "root"), "wanted role"},
      {With("\"acme\"", "\"Acme\""), "wanted a tenant"},
      {With("\"acme\"", "[\"acme\"]"), "wanted a tenant"},
      {With("\"ann\"", "\"\""), "wanted a principal"},
      {R"({"exp":1,"exp":2})", "wanted claims as a JSON object"},
      {"[]", "wanted claims as a JSON object"},
      {"", "wanted claims as a JSON object"},
  };
  for (const Case& test : cases) {
    const auto principal = verifier->Verify(Ec().Sign(kEs, test.claims), At(1500));
    ASSERT_FALSE(principal.ok()) << test.claims;
    EXPECT_NE(principal.status().message().find(test.wanted), std::string::npos)
        << principal.status();
  }
  for (const std::string& claims :
       {With("\"quantry\"", R"(["a","quantry"])"), With("1000", "1530"), With(R"(,"nbf":1000)", ""),
        With("2000", "2000.5"), With("\"acme\"", "\"*\"")}) {
    EXPECT_TRUE(verifier->Verify(Ec().Sign(kEs, claims), At(1500)).ok()) << claims;
  }
}

TEST_F(Jwt, SignaturesThatAreNotBelieved) {
  const auto verifier = Load();
  const JwtKey stranger(JwtKey::Kind::kEc);
  const std::string good = Ec().Sign(kEs, kClaims);
  const std::string signature = good.substr(good.rfind('.'));
  const std::string unsigned_part = Base64Url(R"({"alg":"none"})") + "." + Base64Url(kClaims) + ".";
  const std::string flipped = std::string(1, good.back() == 'A' ? 'Q' : 'A');
  const std::string cases[] = {
      stranger.Sign(kEs, kClaims),
      Rsa().Sign(kEs, kClaims),  // another key's kind of signature
      Ec().Sign(kRs, kClaims),
      Ec().Sign(R"({"alg":"ES256","kid":"r"})", kClaims),
      Ec().Sign(R"({"alg":"ES256","kid":"gone"})", kClaims),
      Ec().Sign(R"({"alg":"HS256"})", kClaims),
      Ec().Sign(R"({"alg":"ES384"})", kClaims),
      Ec().Sign(R"({"alg":["ES256"]})", kClaims),
      Ec().Sign("{}", kClaims),
      Ec().Sign(R"({"alg":"ES256","crit":["exp"],"exp":1})", kClaims),
      Ec().Sign(R"({"alg":"ES256","alg":"ES256"})", kClaims),
      unsigned_part,
      unsigned_part + signature.substr(1),
      Base64Url(kEs) + "." + Base64Url(With("acme", "evil")) + signature,
      good.substr(0, good.rfind('.') + 1),
      good.substr(0, good.size() - 8) + "AAAAAAAA",
      good.substr(0, 40) + "!" + good.substr(41),
      "..",
      "a.b.c",
      good + std::string(9000, 'A'),
  };
  for (const std::string& token : cases) {
    EXPECT_FALSE(verifier->Verify(token, At(1500)).ok()) << token.substr(0, 300);
  }
  EXPECT_TRUE(verifier->Verify(good, At(1500)).ok());
}

TEST_F(Jwt, KeysThatAreRefused) {
  const JwtKey weak(JwtKey::Kind::kRsa, 1024);
  struct Case {
    std::string keys;
    const char* wanted;
  };
  const Case cases[] = {
      {"", "a list of at least one"},
      {R"({"kty":"oct","k":"c2VjcmV0"})", "keys[0]: wanted a public key, got a secret one"},
      {Ec().Jwk("e") + R"(,{"kty":"EC","crv":"P-256","d":"x"})", "keys[1]: wanted a public key"},
      {R"({"kty":"EC","crv":"P-384"})", "wanted an EC key of crv P-256"},
      {R"({"kty":"OKP"})", "wanted a key of kty RSA or EC"},
      {R"({"kty":"RSA","n":"AQAB","e":"AQAB"})", "2048 bits or more"},
      {weak.Jwk(""), "2048 bits or more"},
      {"7", "wanted a key of kty RSA or EC"},
      {"]", "a list of at least one"},
  };
  for (const Case& test : cases) {
    Write(test.keys);
    const auto loaded = JwtVerifier::Load(file_, {.issuer = "i", .audience = "a"});
    ASSERT_FALSE(loaded.ok()) << test.keys;
    EXPECT_NE(loaded.status().message().find(test.wanted), std::string::npos) << loaded.status();
  }
  EXPECT_FALSE(JwtVerifier::Load("/nonexistent", {}).ok());
}

TEST_F(Jwt, ThroughTheAuthenticator) {
  auto auth = Authenticator::Open({.principals_file = "",
                                   .spiffe_trust_domain = "",
                                   .jwks_file = file_,
                                   .jwt = {.issuer = "https://issuer", .audience = "quantry"}});
  ASSERT_TRUE(auth.ok()) << auth.status();
  const Presented presented{.authorization = "Bearer " + Ec().Sign(kEs, kClaims),
                            .certificate_pem = ""};
  for (int i = 0; i < 2; ++i) {  // the second time from what was checked
    EXPECT_EQ((*auth)->Authenticate(presented, At(1999))->name, "ann");
    EXPECT_EQ(MetadataOf((*auth)->Authenticate(presented, At(2000)).status(), "cause"), "expired");
  }
  const Presented wrong{.authorization = "Bearer a.b.c", .certificate_pem = ""};
  EXPECT_EQ(MetadataOf((*auth)->Authenticate(wrong, At(1500)).status(), "cause"), "unknown");
  // The key goes, and with it all that it signed.
  Write(Rsa().Jwk("r"));
  ASSERT_TRUE(*(*auth)->Reload());
  EXPECT_EQ(MetadataOf((*auth)->Authenticate(presented, At(1500)).status(), "cause"), "unknown");
}

}  // namespace
}  // namespace quantry::server
