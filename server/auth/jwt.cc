#include "server/auth/jwt.h"

#include <jansson.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <mutex>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/errors.h"

extern "C" {
#include <jose/b64.h>
#include <jose/cfg.h>
#include <jose/jwk.h>
#include <jose/jws.h>
}

namespace quantry::server {
namespace {

struct JsonFree {
  void operator()(json_t* value) const { json_decref(value); }
};
using Json = std::unique_ptr<json_t, JsonFree>;
struct ConfigFree {
  void operator()(jose_cfg_t* value) const { jose_cfg_decref(value); }
};

// Clocks differ.
constexpr auto kNotBeforeGrace = std::chrono::seconds(30);
constexpr size_t kMaxTokenBytes = 8 << 10;
constexpr int kLeastRsaBytes = 2048 / 8;
// exp beyond it is nonsense, and would overflow Time.
constexpr double kLastSecond = 253'402'300'799;  // of the year 9999

struct Algorithm {
  std::string_view name;  // alg of the token
  std::string_view type;  // kty of the key
};
constexpr std::array kAlgorithms = {Algorithm{"RS256", "RSA"}, Algorithm{"ES256", "EC"}};

absl::Status Bad(const std::string& file, const std::string& what) {
  return MakeError(Reason::kInvalidConfig, absl::StrCat(file, ": ", what), {{"file", file}});
}

absl::Status Wrong(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("JWT: ", std::string(what)));
}

// "" when it is absent or no text.
std::string_view TextOf(const json_t* object, const char* key) {
  const json_t* value = json_object_get(object, key);
  if (!json_is_string(value)) return "";
  return {json_string_value(value), json_string_length(value)};
}

Json ParseObject(std::string_view text) {
  json_error_t error;
  Json value(json_loadb(text.data(), text.size(), JSON_REJECT_DUPLICATES, &error));
  return json_is_object(value.get()) ? std::move(value) : nullptr;
}

// A part of the token as the JSON object it must hold; null otherwise.
Json DecodePart(std::string_view part) {
  std::string bytes(part.size(), '\0');
  const size_t size = jose_b64_dec_buf(part.data(), part.size(), bytes.data(), bytes.size());
  if (size == SIZE_MAX) return nullptr;
  bytes.resize(size);
  return ParseObject(bytes);
}

absl::Status CheckKey(const std::string& file, size_t index, const json_t* key) {
  const std::string where = absl::StrCat(file, ": keys[", index, "]");
  const std::string_view type = TextOf(key, "kty");
  if (json_object_get(key, "d") != nullptr || type == "oct") {
    return Bad(where, "wanted a public key, got a secret one; keep that with who signs");
  }
  if (type == "EC") {
    if (TextOf(key, "crv") == "P-256") return absl::OkStatus();
    return Bad(where, "wanted an EC key of crv P-256, got another curve");
  }
  if (type != "RSA") return Bad(where, "wanted a key of kty RSA or EC, got another");
  const std::string_view modulus = TextOf(key, "n");
  const size_t bytes = jose_b64_dec_buf(modulus.data(), modulus.size(), nullptr, 0);
  if (bytes != SIZE_MAX && bytes >= kLeastRsaBytes) return absl::OkStatus();
  return Bad(where, "wanted an RSA key of 2048 bits or more, got a shorter one");
}

class JoseVerifier : public JwtVerifier {
 public:
  JoseVerifier(Json keys, JwtRules rules)
      : keys_(std::move(keys)), rules_(std::move(rules)), config_(jose_cfg()) {
    // libjose would print what strangers send.
    jose_cfg_set_err_func(
        config_.get(), [](void*, const char*, int, uint64_t, const char*, va_list) {}, nullptr);
  }

  absl::StatusOr<Principal> Verify(std::string_view token, Time now) const override {
    if (token.size() > kMaxTokenBytes) return Wrong("wanted at most 8 KiB, got more");
    const size_t first = token.find('.');
    const size_t second = token.find('.', first + 1);
    const std::string_view header = token.substr(0, first);
    const std::string_view payload = token.substr(first + 1, second - first - 1);
    if (absl::Status status = CheckSignature(header, payload, token.substr(second + 1));
        !status.ok()) {
      return status;
    }
    const Json claims = DecodePart(payload);
    if (claims == nullptr) return Wrong("wanted claims as a JSON object");
    return Believe(claims.get(), now);
  }

 private:
  absl::Status CheckSignature(std::string_view header_part, std::string_view payload,
                              std::string_view signature) const {
    const Json header = DecodePart(header_part);
    if (header == nullptr) return Wrong("wanted a header as a JSON object");
    const std::string_view alg = TextOf(header.get(), "alg");
    const auto* algorithm = std::find_if(kAlgorithms.begin(), kAlgorithms.end(),
                                         [alg](const Algorithm& row) { return row.name == alg; });
    if (algorithm == kAlgorithms.end()) return Wrong("wanted alg RS256 or ES256, got another");
    if (json_object_get(header.get(), "crit") != nullptr) {
      return Wrong("wanted no crit header, got one: its extensions are not known here");
    }
    const Json signed_part(json_pack("{s:s%, s:s%, s:s%}", "protected", header_part.data(),
                                     header_part.size(), "payload", payload.data(), payload.size(),
                                     "signature", signature.data(), signature.size()));
    if (signed_part == nullptr) return Wrong("wanted base64url, got other bytes");
    const std::string_view kid = TextOf(header.get(), "kid");
    const std::lock_guard lock(mutex_);
    size_t index = 0;
    json_t* key = nullptr;
    json_array_foreach(keys_.get(), index, key) {
      if (TextOf(key, "kty") != algorithm->type) continue;
      // A key without a name may be meant; one with another name is not.
      if (!kid.empty() && json_object_get(key, "kid") != nullptr && TextOf(key, "kid") != kid) {
        continue;
      }
      if (jose_jws_ver(config_.get(), signed_part.get(), nullptr, key, false)) {
        return absl::OkStatus();
      }
    }
    return Wrong("no key of --jwks-file has signed it");
  }

  absl::StatusOr<Principal> Believe(const json_t* claims, Time now) const {
    if (TextOf(claims, "iss") != rules_.issuer) {
      return Wrong(absl::StrCat("wanted iss ", rules_.issuer, ", got another"));
    }
    if (!HasAudience(json_object_get(claims, "aud"))) {
      return Wrong(absl::StrCat("wanted aud ", rules_.audience, ", got another"));
    }
    const auto end = Moment(claims, "exp");
    if (!end) return Wrong("wanted exp as a number, got none");
    if (json_object_get(claims, "nbf") != nullptr) {
      const auto begin = Moment(claims, "nbf");
      if (!begin) return Wrong("wanted nbf as a number");
      if (*begin > now + kNotBeforeGrace) return Wrong("it does not count yet: nbf is to come");
    }
    auto principal = MakePrincipal(TextOf(claims, "sub"), TextOf(claims, "quantry_role"),
                                   TextOf(claims, "quantry_tenant"));
    if (!principal.ok()) {
      return Wrong(absl::StrCat("sub, quantry_role, quantry_tenant: ",
                                std::string(principal.status().message())));
    }
    principal->expire_time = *end;
    return principal;
  }

  bool HasAudience(const json_t* audience) const {
    const auto is_ours = [this](const json_t* value) {
      return json_is_string(value) &&
             std::string_view(json_string_value(value), json_string_length(value)) ==
                 rules_.audience;
    };
    if (!json_is_array(audience)) return is_ours(audience);
    for (size_t i = 0; i < json_array_size(audience); ++i) {
      if (is_ours(json_array_get(audience, i))) return true;
    }
    return false;
  }

  static std::optional<Time> Moment(const json_t* claims, const char* key) {
    const json_t* value = json_object_get(claims, key);
    if (!json_is_number(value)) return std::nullopt;
    const double seconds = json_number_value(value);
    if (!(seconds >= 0 && seconds <= kLastSecond)) return std::nullopt;
    return Time(std::chrono::seconds(static_cast<std::int64_t>(std::floor(seconds))));
  }

  mutable std::mutex mutex_;  // libjose counts references of the keys it looks at
  const Json keys_;           // an array
  const JwtRules rules_;
  const std::unique_ptr<jose_cfg_t, ConfigFree> config_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const JwtVerifier>> JwtVerifier::Load(const std::string& jwks_file,
                                                                     JwtRules rules) {
  std::ifstream in(jwks_file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return Bad(jwks_file, "wanted a readable file with a JSON Web Key Set");
  const Json set = ParseObject(text.str());
  json_t* keys = json_object_get(set.get(), "keys");
  if (!json_is_array(keys) || json_array_size(keys) == 0) {
    return Bad(jwks_file, "wanted a JSON object with \"keys\", a list of at least one");
  }
  for (size_t i = 0; i < json_array_size(keys); ++i) {
    absl::Status status = CheckKey(jwks_file, i, json_array_get(keys, i));
    if (!status.ok()) return status;
  }
  return std::make_shared<const JoseVerifier>(Json(json_incref(keys)), std::move(rules));
}

bool LooksLikeJwt(std::string_view token) {
  return std::count(token.begin(), token.end(), '.') == 2;
}

}  // namespace quantry::server
