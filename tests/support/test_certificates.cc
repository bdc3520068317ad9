#include "tests/support/test_certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <array>
#include <cstdio>
#include <fstream>

#include "tests/support/must.h"

namespace quantry::testing {
namespace {

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

std::string Pem(X509* certificate) {
  BIO* bio = BIO_new(BIO_s_mem());
  Must(PEM_write_bio_X509(bio, certificate) == 1);
  return Text(bio);
}

std::string Pem(EVP_PKEY* key) {
  BIO* bio = BIO_new(BIO_s_mem());
  Must(PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  return Text(bio);
}

void Extend(X509* certificate, int nid, const std::string& value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
  Must(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

// Everything but issuer and signature.
X509* Blank(const std::string& name, EVP_PKEY* key, std::chrono::seconds lasts) {
  X509* certificate = X509_new();
  std::uint64_t serial = 0;
  Must(RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof serial) == 1);
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate), serial >> 1);
  X509_set_version(certificate, 2);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), lasts.count());
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_pubkey(certificate, key);
  return certificate;
}

}  // namespace

struct TestCa::Keys {
  EVP_PKEY* key = nullptr;
  X509* certificate = nullptr;
};

TestCa::TestCa(const std::string& name) : keys_(std::make_unique<Keys>()) {
  keys_->key = EVP_EC_gen("P-256");
  keys_->certificate = Blank(name, keys_->key, std::chrono::hours(24));
  X509_set_issuer_name(keys_->certificate, X509_get_subject_name(keys_->certificate));
  Extend(keys_->certificate, NID_basic_constraints, "critical,CA:TRUE");
  Must(X509_sign(keys_->certificate, keys_->key, EVP_sha256()) > 0);
  pem_ = Pem(keys_->certificate);
}

TestCa::~TestCa() {
  X509_free(keys_->certificate);
  EVP_PKEY_free(keys_->key);
}

PemPair TestCa::Sign(const std::string& name, const std::vector<std::string>& alternative_names,
                     std::chrono::seconds lasts) const {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = Blank(name, key, lasts);
  X509_set_issuer_name(certificate, X509_get_subject_name(keys_->certificate));
  std::string names;
  for (const std::string& one : alternative_names) names += (names.empty() ? "" : ",") + one;
  if (!names.empty()) Extend(certificate, NID_subject_alt_name, names);
  Must(X509_sign(certificate, keys_->key, EVP_sha256()) > 0);
  PemPair pair{Pem(certificate), Pem(key)};
  X509_free(certificate);
  EVP_PKEY_free(key);
  return pair;
}

std::string TestCa::Revoke(const std::vector<std::string>& certificates,
                           std::chrono::seconds lasts) const {
  X509_CRL* list = X509_CRL_new();
  Must(X509_CRL_set_version(list, 1) == 1);
  Must(X509_CRL_set_issuer_name(list, X509_get_subject_name(keys_->certificate)) == 1);
  ASN1_TIME* time = ASN1_TIME_new();
  X509_gmtime_adj(time, -3600);
  Must(X509_CRL_set1_lastUpdate(list, time) == 1);
  for (const std::string& pem : certificates) {
    BIO* bio = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
    X509* certificate = PEM_read_bio_X509(bio, nullptr, nullptr, nullptr);
    Must(certificate != nullptr);
    X509_REVOKED* entry = X509_REVOKED_new();
    X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(certificate));
    X509_REVOKED_set_revocationDate(entry, time);
    Must(X509_CRL_add0_revoked(list, entry) == 1);
    X509_free(certificate);
    BIO_free(bio);
  }
  X509_gmtime_adj(time, lasts.count());
  Must(X509_CRL_set1_nextUpdate(list, time) == 1);
  ASN1_TIME_free(time);
  Must(X509_CRL_sort(list) == 1 && X509_CRL_sign(list, keys_->key, EVP_sha256()) > 0);
  BIO* bio = BIO_new(BIO_s_mem());
  Must(PEM_write_bio_X509_CRL(bio, list) == 1);
  X509_CRL_free(list);
  return Text(bio);
}

std::string TestCa::RevocationName(int number) const {
  std::array<char, 32> name{};
  std::snprintf(name.data(), name.size(), "%08lx.r%d",
                X509_NAME_hash(X509_get_subject_name(keys_->certificate)), number);
  return name.data();
}

std::string WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

}  // namespace quantry::testing
