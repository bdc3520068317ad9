// X.509 certificates in PEM as far as quantry looks into them itself: checks
// before a server or client starts, the end of their time, the names of a
// verified peer. The handshake is gRPC's. Pure but for reading files.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"

namespace quantry {

struct CertificateFacts {
  std::vector<std::string> uris;  // subject alternative names of type URI
  Time not_after;
};

// The first certificate of `pem`. INVALID_ARGUMENT without one.
absl::StatusOr<CertificateFacts> ReadCertificate(std::string_view pem);

// When the first certificate of the file ends: the chain's own is the first.
// INVALID_ARGUMENT INVALID_CONFIG names the file.
absl::StatusOr<Time> CertificateExpiry(const std::string& file);

// OK when both files parse and belong together. INVALID_ARGUMENT
// INVALID_CONFIG says which does not, and how.
absl::Status CheckKeyPair(const std::string& certificate_file, const std::string& key_file);

// OK when the file holds a certificate. INVALID_ARGUMENT INVALID_CONFIG.
absl::Status CheckCertificates(const std::string& file);

}  // namespace quantry
