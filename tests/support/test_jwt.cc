#include "tests/support/test_jwt.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>

#include <algorithm>

#include "tests/support/must.h"

namespace quantry::testing {
namespace {

std::string Number(const EVP_PKEY* key, const char* name, int least_bytes) {
  BIGNUM* value = nullptr;
  Must(EVP_PKEY_get_bn_param(key, name, &value) == 1);
  std::string bytes(static_cast<size_t>(std::max(BN_num_bytes(value), least_bytes)), '\0');
  Must(BN_bn2binpad(value, reinterpret_cast<unsigned char*>(bytes.data()),
                    static_cast<int>(bytes.size())) > 0);
  BN_free(value);
  return bytes;
}

// JWS wants r and s side by side, OpenSSL gives DER.
std::string SideBySide(const std::string& der) {
  const auto* data = reinterpret_cast<const unsigned char*>(der.data());
  ECDSA_SIG* signature = d2i_ECDSA_SIG(nullptr, &data, static_cast<long>(der.size()));
  Must(signature != nullptr);
  std::string bytes(64, '\0');
  auto* out = reinterpret_cast<unsigned char*>(bytes.data());
  BN_bn2binpad(ECDSA_SIG_get0_r(signature), out, 32);
  BN_bn2binpad(ECDSA_SIG_get0_s(signature), out + 32, 32);
  ECDSA_SIG_free(signature);
  return bytes;
}

}  // namespace

struct JwtKey::Key {
  EVP_PKEY* value;
};

JwtKey::JwtKey(Kind kind, int bits) : kind_(kind) {
  EVP_PKEY* key =
      kind == Kind::kRsa ? EVP_RSA_gen(static_cast<unsigned>(bits)) : EVP_EC_gen("P-256");
  Must(key != nullptr);
  key_ = std::make_unique<Key>(Key{key});
}

JwtKey::~JwtKey() { EVP_PKEY_free(key_->value); }

std::string JwtKey::Jwk(const std::string& kid) const {
  std::string text = kind_ == Kind::kRsa ? R"({"kty":"RSA")" : R"({"kty":"EC","crv":"P-256")";
  if (!kid.empty()) text += R"(,"kid":")" + kid + "\"";
  const auto add = [&](const char* name, const char* parameter, int least) {
    text += std::string(",\"") + name + "\":\"" + Base64Url(Number(key_->value, parameter, least)) +
            "\"";
  };
  if (kind_ == Kind::kRsa) {
    add("n", OSSL_PKEY_PARAM_RSA_N, 1);
    add("e", OSSL_PKEY_PARAM_RSA_E, 1);
  } else {
    add("x", OSSL_PKEY_PARAM_EC_PUB_X, 32);
    add("y", OSSL_PKEY_PARAM_EC_PUB_Y, 32);
  }
  return text + "}";
}

std::string JwtKey::Sign(const std::string& header, const std::string& claims) const {
  const std::string text = Base64Url(header) + "." + Base64Url(claims);
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  Must(EVP_DigestSignInit(context, nullptr, EVP_sha256(), nullptr, key_->value) == 1);
  std::string signature(1024, '\0');
  size_t size = signature.size();
  Must(EVP_DigestSign(context, reinterpret_cast<unsigned char*>(signature.data()), &size,
                      reinterpret_cast<const unsigned char*>(text.data()), text.size()) == 1);
  EVP_MD_CTX_free(context);
  signature.resize(size);
  return text + "." + Base64Url(kind_ == Kind::kEc ? SideBySide(signature) : signature);
}

std::string Base64Url(const std::string& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string text;
  unsigned bits = 0;
  int count = 0;
  for (const char c : bytes) {
    bits = bits << 8 | static_cast<unsigned char>(c);
    for (count += 8; count >= 6; count -= 6) text += kDigits[bits >> (count - 6) & 63];
  }
  if (count > 0) text += kDigits[bits << (6 - count) & 63];
  return text;
}

}  // namespace quantry::testing
