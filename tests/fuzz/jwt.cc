// JSON Web Tokens and key sets: foreign ones, and tokens whose signature is right
// around a header or claims made of the input.
#include "server/auth/jwt.h"

#include "tests/fuzz/scratch.h"
#include "tests/support/test_jwt.h"

namespace {

using quantry::testing::JwtKey;
constexpr char kHeader[] = R"({"alg":"ES256"})";
constexpr char kClaims[] =
    R"({"iss":"i","aud":"a","sub":"s","quantry_role":"viewer","quantry_tenant":"t","exp":9e9})";

const quantry::fuzz::Scratch& Folder() {
  static const quantry::fuzz::Scratch scratch;
  return scratch;
}

auto Load(std::string_view keys) {
  Folder().Write("keys.json", keys);
  return quantry::server::JwtVerifier::Load(Folder().path() + "/keys.json",
                                            {.issuer = "i", .audience = "a"});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const JwtKey ours(JwtKey::Kind::kEc);
  static const auto verifier = *Load(R"({"keys":[)" + ours.Jwk("k") + "]}");
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto now = quantry::Time();
  (void)quantry::server::LooksLikeJwt(text);
  if (verifier->Verify(text, now).ok()) __builtin_trap();  // nobody signed it
  if (!verifier->Verify(ours.Sign(kHeader, kClaims), now).ok()) __builtin_trap();
  (void)verifier->Verify(ours.Sign(text, kClaims), now).ok();
  const auto principal = verifier->Verify(ours.Sign(kHeader, text), now);
  if (principal.ok() && (principal->name.empty() || !principal->expire_time)) __builtin_trap();
  // Keys that are none of whoever signed.
  const auto others = Load(text);
  if (others.ok() && (*others)->Verify(ours.Sign(kHeader, kClaims), now).ok()) __builtin_trap();
  return 0;
}
