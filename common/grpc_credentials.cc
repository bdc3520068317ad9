#include "common/grpc_credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
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

// What is wrong without looking into a certificate.
absl::Status CheckClient(const ClientSecurity& security, const std::string& target) {
  if (security.cert_file.empty() != security.key_file.empty()) {
    return Bad("wanted a client certificate and its key together, got one of them");
  }
  if (!security.cert_file.empty() && !security.tls()) {
    return Bad("a client certificate needs TLS: name the server's CA too, or system");
  }
  if (security.token_file.empty()) return absl::OkStatus();
  if (auto token = ReadToken(security.token_file); !token.ok()) return token.status();
  if (security.tls() || IsLoopbackTarget(target)) return absl::OkStatus();
  return Bad(absl::StrCat("wanted TLS to send a token to ", target,
                          ", got a plain connection: anybody on the way could read it. Name "
                          "the server's CA, or system for a public one"));
}

// How often it looks at its copies. No file is read for that.
constexpr unsigned kGrpcLooksS = 1;

std::shared_ptr<FileWatcherCertificateProvider> Provider(const CheckedCertificates* identity,
                                                         const CheckedCertificates* ca) {
  const std::string pair = identity == nullptr ? "" : identity->path();
  return std::make_shared<FileWatcherCertificateProvider>(
      pair, pair, ca == nullptr ? "" : ca->path(), kGrpcLooksS);
}

// A client's certificates, and the thread that looks at their files.
class ClientCertificates {
 public:
  static absl::StatusOr<std::shared_ptr<ClientCertificates>> Open(const ClientSecurity& security) {
    auto opened = std::make_shared<ClientCertificates>();
    if (security.ca_file != kSystemCas) {
      auto ca = CheckedCertificates::OfCas(security.ca_file);
      if (!ca.ok()) return ca.status();
      opened->ca_ = *std::move(ca);
    }
    if (!security.cert_file.empty()) {
      auto identity = CheckedCertificates::OfPair(security.cert_file, security.key_file);
      if (!identity.ok()) return identity.status();
      opened->identity_ = *std::move(identity);
    }
    if (opened->ca_ == nullptr && opened->identity_ == nullptr) return opened;
    opened->thread_ = std::jthread([certificates = opened.get(), reload = security.reload,
                                    refused = security.on_unusable](std::stop_token stop) {
      certificates->Run(stop, reload, refused);
    });
    return opened;
  }

  // Null: none of its own.
  const CheckedCertificates* ca() const { return ca_.get(); }
  const CheckedCertificates* identity() const { return identity_.get(); }

 private:
  void Run(std::stop_token stop, std::chrono::seconds reload,
           const CheckedCertificates::Refused& refused) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, stop, reload, [&] { return stop.stop_requested(); })) {
      if (ca_ != nullptr) ca_->Look(refused);
      if (identity_ != nullptr) identity_->Look(refused);
    }
  }

  std::unique_ptr<CheckedCertificates> ca_;
  std::unique_ptr<CheckedCertificates> identity_;
  std::jthread thread_;  // uses those above
};

std::shared_ptr<grpc::ChannelCredentials> TlsChannel(const ClientCertificates& certificates) {
  const CheckedCertificates* ca = certificates.ca();
  const CheckedCertificates* identity = certificates.identity();
  grpc::experimental::TlsChannelCredentialsOptions options;
  if (ca != nullptr || identity != nullptr) {
    options.set_certificate_provider(Provider(identity, ca));
  }
  if (ca != nullptr) options.watch_root_certs();
  if (identity != nullptr) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

// For as long as a client keeps its credentials.
struct KeptTogether {
  std::shared_ptr<ClientCertificates> certificates;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
};

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
  if (!security.crl_dir.empty()) {
    if (absl::Status status = CheckCrlDir(security.crl_dir); !status.ok()) return status;
  }
  grpc::experimental::TlsServerCredentialsOptions options(
      Provider(security.identity, security.client_ca));
  options.watch_identity_key_cert_pairs();
  if (security.client_ca == nullptr) {
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
  if (absl::Status status = CheckClient(security, target); !status.ok()) return status;
  const bool has_token = !security.token_file.empty();
  std::shared_ptr<ClientCertificates> certificates;
  std::shared_ptr<grpc::ChannelCredentials> channel;
  if (security.tls()) {
    auto opened = ClientCertificates::Open(security);
    if (!opened.ok()) return opened.status();
    certificates = *std::move(opened);
    channel = TlsChannel(*certificates);
  } else if (!has_token) {
    channel = grpc::InsecureChannelCredentials();
  } else {
    // Plain bytes, but only between two ends of one machine.
    channel = grpc::experimental::LocalCredentials(LOCAL_TCP);
  }
  if (has_token) {
    channel = grpc::CompositeChannelCredentials(
        channel, grpc::experimental::MetadataCredentialsFromPlugin(
                     std::make_unique<TokenPlugin>(security.token_file),
                     security.tls() ? GRPC_PRIVACY_AND_INTEGRITY : GRPC_SECURITY_NONE));
  }
  auto kept = std::make_shared<KeptTogether>(
      KeptTogether{.certificates = std::move(certificates), .credentials = std::move(channel)});
  return std::shared_ptr<grpc::ChannelCredentials>(kept, kept->credentials.get());
}

}  // namespace quantry
