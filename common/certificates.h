// X.509 certificates in PEM as far as quantry looks into them itself: checks
// before a server or client uses them, the end of their time, the names of a
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

// What two files hold that belong together, as one text: the private key, then the
// certificate chain as it is in its file. Each is read once. INVALID_ARGUMENT
// INVALID_CONFIG says which of them does not parse or fit, and how.
absl::StatusOr<std::string> ReadKeyPair(const std::string& certificate_file,
                                        const std::string& key_file);

// The text of a file that holds a certificate, and none that is broken.
// INVALID_ARGUMENT INVALID_CONFIG.
absl::StatusOr<std::string> ReadCertificates(const std::string& file);

}  // namespace quantry
