#include "common/grpc_credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/certificates.h"
#include "common/errors.h"

namespace quantry {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

absl::Status Bad(const std::string& message) { return MakeError(Reason::kInvalidConfig, message); }

bool IsCrlName(const std::string& name) {
  constexpr size_t kHashDigits = 8;
  return name.size() > kHashDigits + 2 && name.compare(kHashDigits, 2, ".r") == 0 &&
         name.find_first_not_of("0123456789abcdef") == kHashDigits;
}

// gRPC says nothing when it finds no list, and then lets everybody in.
absl::Status CheckCrlDir(const std::string& folder) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (IsCrlName(entry->path().filename().string())) return absl::OkStatus();
  }
  return Bad(absl::StrCat(folder, ": wanted a folder with a revocation list named HASH.r0, got ",
                          error ? error.message() : "none",
                          "; put the CA's list there and run `openssl rehash` on the folder"));
}

// Asked by gRPC before each call, on its threads.
class TokenPlugin : public grpc::MetadataCredentialsPlugin {
 public:
  explicit TokenPlugin(std::string file) : file_(std::move(file)) {}
  bool IsBlocking() const override { return false; }  // a small local file
  const char* GetType() const override { return "quantry-token"; }
  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<grpc::string, grpc::string>* metadata) override {
    auto token = ReadToken(file_);
    if (!token.ok()) {
      return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, std::string(token.status().message()));
    }
    metadata->emplace("authorization", absl::StrCat("Bearer ", *token));
    return grpc::Status::OK;
  }

 private:
  const std::string file_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsChannel(
    const ClientSecurity& security) {
  const bool own_roots = security.ca_file != kSystemCas;
  if (own_roots) {
    if (absl::Status status = CheckCertificates(security.ca_file); !status.ok()) return status;
  }
  const bool has_identity = !security.cert_file.empty();
  if (has_identity) {
    absl::Status status = CheckKeyPair(security.cert_file, security.key_file);
    if (!status.ok()) return status;
  }
  grpc::experimental::TlsChannelCredentialsOptions options;
  if (own_roots || has_identity) {
    options.set_certificate_provider(std::make_shared<FileWatcherCertificateProvider>(
        security.key_file, security.cert_file, own_roots ? security.ca_file : "",
        static_cast<unsigned>(security.reload.count())));
  }
  if (own_roots) options.watch_root_certs();
  if (has_identity) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace

bool IsLoopbackTarget(const std::string& target) {
  return target.rfind("127.", 0) == 0 || target.rfind("localhost:", 0) == 0 ||
         target.rfind("[::1]", 0) == 0;
}

absl::StatusOr<std::string> ReadToken(const std::string& file) {
  errno = 0;
  std::ifstream in(file);
  std::string token;
  std::getline(in, token);
  if (token.empty() && errno != 0) {
    return Bad(absl::StrCat(file, ": wanted a file with a token, got: ", std::strerror(errno)));
  }
  const size_t end = token.find_last_not_of(" \t\r\n");
  token.resize(end == std::string::npos ? 0 : end + 1);
  const bool plain = token.find_first_of(" \t\"{") == std::string::npos;
  if (!token.empty() && plain) return token;
  return Bad(absl::StrCat(file, ": wanted a token on the first line, got ",
                          token.empty() ? "an empty line" : "something with blanks or quotes"));
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServerSecurity& security) {
  absl::Status status = CheckKeyPair(security.cert_file, security.key_file);
  if (status.ok() && !security.client_ca_file.empty()) {
    status = CheckCertificates(security.client_ca_file);
  }
  if (status.ok() && !security.crl_dir.empty()) status = CheckCrlDir(security.crl_dir);
  if (!status.ok()) return status;
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<FileWatcherCertificateProvider>(
          security.key_file, security.cert_file, security.client_ca_file,
          static_cast<unsigned>(security.reload.count())));
  options.watch_identity_key_cert_pairs();
  if (security.client_ca_file.empty()) {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  } else {
    options.watch_root_certs();
    if (!security.crl_dir.empty()) options.set_crl_directory(security.crl_dir);
    options.set_cert_request_type(security.require_client_certificate
                                      ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                      : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientSecurity& security, const std::string& target) {
  if (security.cert_file.empty() != security.key_file.empty()) {
    return Bad("wanted a client certificate and its key together, got one of them");
  }
  if (!security.cert_file.empty() && !security.tls()) {
    return Bad("a client certificate needs TLS: name the server's CA too, or system");
  }
  const bool has_token = !security.token_file.empty();
  if (has_token) {
    if (auto token = ReadToken(security.token_file); !token.ok()) return token.status();
  }
  if (has_token && !security.tls() && !IsLoopbackTarget(target)) {
    return Bad(absl::StrCat("wanted TLS to send a token to ", target,
                            ", got a plain connection: anybody on the way could read it. Name "
                            "the server's CA, or system for a public one"));
  }
  std::shared_ptr<grpc::ChannelCredentials> channel;
  if (security.tls()) {
    auto tls = TlsChannel(security);
    if (!tls.ok()) return tls.status();
    channel = *std::move(tls);
  } else if (!has_token) {
    return grpc::InsecureChannelCredentials();
  } else {
    // Plain bytes, but only between two ends of one machine.
    channel = grpc::experimental::LocalCredentials(LOCAL_TCP);
  }
  if (!has_token) return channel;
  return grpc::CompositeChannelCredentials(
      channel, grpc::experimental::MetadataCredentialsFromPlugin(
                   std::make_unique<TokenPlugin>(security.token_file),
                   security.tls() ? GRPC_PRIVACY_AND_INTEGRITY : GRPC_SECURITY_NONE));
}

}  // namespace quantry
