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

// What gRPC leaves out without a word, with all that follows it.
bool HasBroken(std::string_view pem) {
  const Bio bio = Memory(pem);
  ERR_clear_error();
  while (Certificate(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr)) != nullptr) {
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  return !at_end;
}

Key ParseKey(std::string_view pem) {
  ERR_clear_error();
  Key key(PEM_read_bio_PrivateKey(Memory(pem).get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  return key;
}

bool Fits(const EVP_PKEY& key, const X509& certificate) {
  const bool fits = X509_check_private_key(&certificate, &key) == 1;
  ERR_clear_error();
  return fits;
}

// "" for a key that has no such form.
std::string ToPem(const EVP_PKEY& key) {
  const Bio out(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PrivateKey(out.get(), &key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return "";
  }
  char* data = nullptr;
  const long size = BIO_get_mem_data(out.get(), &data);
  return {data, static_cast<size_t>(size)};
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

absl::StatusOr<std::string> ReadKeyPair(const std::string& certificate_file,
                                        const std::string& key_file) {
  auto chain = ReadCertificates(certificate_file);
  if (!chain.ok()) return chain;
  const auto text = ReadFile(key_file);
  if (!text.ok()) return text;
  const Key key = ParseKey(*text);
  // Not the file's own text: it may hold certificates, too.
  const std::string pem = key == nullptr ? "" : ToPem(*key);
  if (pem.empty()) return Bad(key_file, "a PEM private key without a passphrase", "none");
  if (Fits(*key, *Parse(*chain))) return pem + *chain;
  return Bad(key_file, absl::StrCat("the key of ", certificate_file), "another's");
}

absl::StatusOr<std::string> ReadCertificates(const std::string& file) {
  auto text = ReadFile(file);
  if (!text.ok()) return text;
  if (Parse(*text) == nullptr) return Bad(file, "a PEM certificate", "none");
  if (HasBroken(*text)) return Bad(file, "PEM certificates", "one that is cut off or broken");
  return text;
}

}  // namespace quantry
