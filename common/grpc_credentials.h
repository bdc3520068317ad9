// TLS and bearer tokens of gRPC connections: the one place server, worker and
// CLI get their credentials from. Files are checked at once and looked at again
// while the process runs, so that a renewed certificate counts for the next
// handshake; one that cannot be used changes nothing.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checked_certificates.h"

namespace quantry {

// Value of a CA file: trust what the machine trusts.
inline constexpr char kSystemCas[] = "system";

struct ServerSecurity {
  const CheckedCertificates* identity = nullptr;   // key and chain; null: no TLS
  const CheckedCertificates* client_ca = nullptr;  // null: client certificates are not asked for
  // Revocation lists of those CAs as `openssl rehash` names them, HASH.r0 and up;
  // "": none. A CA without a list revokes nothing.
  std::string crl_dir = {};
  // Refuse the handshake of a client without certificate: nothing else can
  // tell who it is.
  bool require_client_certificate = false;
};

// For a `security` with an identity. What a look at the certificates took counts for
// handshakes a second later. INVALID_ARGUMENT INVALID_CONFIG: `crl_dir` cannot be used.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServerSecurity& security);

struct ClientSecurity {
  std::string ca_file = {};  // PEM, or kSystemCas; "" = no TLS
  std::string cert_file = {};
  std::string key_file = {};
  std::string token_file = {};  // sent as "authorization: Bearer ..."; read for every call
  std::chrono::seconds reload{10};
  // Once for each reason that changed files cannot be used, on a thread of the
  // credentials; those before stay in use.
  CheckedCertificates::Refused on_unusable = [](const std::string&) {};

  bool tls() const { return !ca_file.empty(); }
};

// Without TLS a token goes to loopback only: gRPC itself refuses to connect
// elsewhere. INVALID_ARGUMENT INVALID_CONFIG: a file cannot be used, a
// certificate without key or without ca_file, a token without TLS to a
// `target` that is not loopback. To be kept as long as a channel uses them: with
// them ends the look at the files.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientSecurity& security, const std::string& target);

// "127.0.0.1:7070", "localhost:7070", "[::1]:7070".
bool IsLoopbackTarget(const std::string& target);

// The token in a file: its first line, trimmed. INVALID_ARGUMENT
// INVALID_CONFIG for an unreadable or empty file, or one with blanks in it.
absl::StatusOr<std::string> ReadToken(const std::string& file);

}  // namespace quantry
