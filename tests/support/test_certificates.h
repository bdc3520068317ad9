// Certificates for tests, made in the process: a CA, and what it signs. EC
// keys, so that making one takes no time.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace quantry::testing {

struct PemPair {
  std::string certificate;
  std::string key;
};

class TestCa {
 public:
  explicit TestCa(const std::string& name);
  ~TestCa();
  const std::string& certificate() const { return pem_; }

  // `alternative_names` in OpenSSL's words: "IP:127.0.0.1", "DNS:localhost",
  // "URI:spiffe://quantry/role/admin". Ends `lasts` from now.
  PemPair Sign(const std::string& name, const std::vector<std::string>& alternative_names,
               std::chrono::seconds lasts = std::chrono::hours(1)) const;
  // A revocation list, in PEM, with these certificates; due anew `lasts` from now.
  std::string Revoke(const std::vector<std::string>& certificates,
                     std::chrono::seconds lasts = std::chrono::hours(1)) const;
  // What OpenSSL looks for: the hash of the CA's name, ".r" and the number.
  std::string RevocationName(int number) const;

 private:
  struct Keys;
  std::unique_ptr<Keys> keys_;
  std::string pem_;
};

// The file's path.
std::string WriteFile(const std::string& path, const std::string& text);

}  // namespace quantry::testing
