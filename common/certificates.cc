#include "common/certificates.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace quantry {
namespace {

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* value) const {
    Free(value);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;

absl::Status Bad(const std::string& file, std::string_view wanted, std::string_view got) {
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat(file, ": wanted ", std::string(wanted), ", got ", std::string(got)),
                   {{"file", file}});
}

absl::StatusOr<std::string> ReadFile(const std::string& file) {
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return Bad(file, "a readable file", std::strerror(errno != 0 ? errno : EIO));
  return text.str();
}

// Keys with a passphrase: there is nobody to ask.
int NoPassphrase(char*, int, int, void*) { return -1; }

Bio Memory(std::string_view text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

Certificate Parse(std::string_view pem) {
  ERR_clear_error();
  Certificate certificate(PEM_read_bio_X509(Memory(pem).get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  return certificate;
}

absl::StatusOr<Certificate> ParseFile(const std::string& file) {
  auto text = ReadFile(file);
  if (!text.ok()) return text.status();
  Certificate certificate = Parse(*text);
  if (certificate == nullptr) return Bad(file, "a PEM certificate", "none");
  return certificate;
}

absl::StatusOr<Time> NotAfter(const X509& certificate) {
  std::tm utc{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &utc) != 1) {
    return absl::InvalidArgumentError("wanted a certificate with an end, got one without");
  }
  return Time(std::chrono::seconds(timegm(&utc)));
}

}  // namespace

absl::StatusOr<CertificateFacts> ReadCertificate(std::string_view pem) {
  const Certificate certificate = Parse(pem);
  if (certificate == nullptr) return absl::InvalidArgumentError("wanted a PEM certificate");
  auto not_after = NotAfter(*certificate);
  if (!not_after.ok()) return not_after.status();
  CertificateFacts facts{.uris = {}, .not_after = *not_after};
  auto* names = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* uri = name->d.uniformResourceIdentifier;
    facts.uris.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                            static_cast<size_t>(ASN1_STRING_length(uri)));
  }
  GENERAL_NAMES_free(names);
  return facts;
}

absl::StatusOr<Time> CertificateExpiry(const std::string& file) {
  auto certificate = ParseFile(file);
  if (!certificate.ok()) return certificate.status();
  auto not_after = NotAfter(**certificate);
  if (!not_after.ok()) return Bad(file, "a certificate with an end", "one without");
  return not_after;
}

absl::Status CheckKeyPair(const std::string& certificate_file, const std::string& key_file) {
  auto certificate = ParseFile(certificate_file);
  if (!certificate.ok()) return certificate.status();
  auto text = ReadFile(key_file);
  if (!text.ok()) return text.status();
  ERR_clear_error();
  const Key key(PEM_read_bio_PrivateKey(Memory(*text).get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) return Bad(key_file, "a PEM private key without a passphrase", "none");
  const bool fits = X509_check_private_key(certificate->get(), key.get()) == 1;
  ERR_clear_error();
  if (fits) return absl::OkStatus();
  return Bad(key_file, absl::StrCat("the key of ", certificate_file), "another's");
}

absl::Status CheckCertificates(const std::string& file) { return ParseFile(file).status(); }

}  // namespace quantry
