// TLS and bearer tokens of gRPC connections: the one place server, worker and
// CLI get their credentials from. Files are checked at once; those of the
// server and of long-lived clients are looked at again while the process runs,
// so that a renewed certificate counts for the next handshake.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace quantry {

// Value of a CA file: trust what the machine trusts.
inline constexpr char kSystemCas[] = "system";

struct ServerSecurity {
  std::string cert_file = {};
  std::string key_file = {};
  std::string client_ca_file = {};  // "": client certificates are not asked for
  // Revocation lists of those CAs as `openssl rehash` names them, HASH.r0 and up;
  // "": none. A CA without a list revokes nothing.
  std::string crl_dir = {};
  // Refuse the handshake of a client without certificate: nothing else can
  // tell who it is.
  bool require_client_certificate = false;
  std::chrono::seconds reload{10};
};

// INVALID_ARGUMENT INVALID_CONFIG names the file that cannot be used.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServerSecurity& security);

struct ClientSecurity {
  std::string ca_file = {};  // PEM, or kSystemCas; "" = no TLS
  std::string cert_file = {};
  std::string key_file = {};
  std::string token_file = {};  // sent as "authorization: Bearer ..."; read for every call
  std::chrono::seconds reload{10};

  bool tls() const { return !ca_file.empty(); }
};

// Without TLS a token goes to loopback only: gRPC itself refuses to connect
// elsewhere. INVALID_ARGUMENT INVALID_CONFIG: a file cannot be used, a
// certificate without key or without ca_file, a token without TLS to a
// `target` that is not loopback.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientSecurity& security, const std::string& target);

// "127.0.0.1:7070", "localhost:7070", "[::1]:7070".
bool IsLoopbackTarget(const std::string& target);

// The token in a file: its first line, trimmed. INVALID_ARGUMENT
// INVALID_CONFIG for an unreadable or empty file, or one with blanks in it.
absl::StatusOr<std::string> ReadToken(const std::string& file);

}  // namespace quantry
