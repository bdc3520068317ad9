#include "common/grpc_credentials.h"

#include <grpcpp/generic/async_generic_service.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/certificates.h"
#include "tests/support/test_certificates.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;
using testing::PemPair;
using testing::TestCa;
using testing::WriteFile;

class GrpcCredentials : public ::testing::Test {
 protected:
  GrpcCredentials() : folder_(::testing::TempDir() + "grpc_credentials_" + Name()) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    Write("ca.pem", ca_.certificate());
    Write("other.pem", other_.certificate());
    WritePair("server", ca_.Sign("server", {"IP:127.0.0.1", "DNS:localhost"}));
    WritePair("elsewhere", ca_.Sign("server", {"DNS:example.org"}));
    WritePair("client", ca_.Sign("client", {"URI:spiffe://quantry/role/admin"}));
    WritePair("stranger", other_.Sign("client", {"URI:spiffe://quantry/role/admin"}));
  }
  ~GrpcCredentials() override { fs::remove_all(folder_); }

  static std::string Name() {
    return ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void Write(const std::string& name, const std::string& text) { WriteFile(Path(name), text); }
  void WritePair(const std::string& name, const PemPair& pair) {
    Write(name + ".pem", pair.certificate);
    Write(name + ".key", pair.key);
  }

  struct Running {
    explicit Running(const ServerSecurity& security) {
      auto credentials = MakeServerCredentials(security);
      EXPECT_TRUE(credentials.ok()) << credentials.status();
      int port = 0;
      grpc::ServerBuilder builder;
      builder.AddListeningPort("127.0.0.1:0", *credentials, &port);
      // A server without a service has nothing to do, and is refused.
      builder.RegisterCallbackGenericService(&service);
      server = builder.BuildAndStart();
      target = "127.0.0.1:" + std::to_string(port);
    }
    ~Running() { server->Shutdown(std::chrono::system_clock::now()); }

    grpc::CallbackGenericService service;
    std::unique_ptr<grpc::Server> server;
    std::string target;
  };

  // Whether a client with `client` reaches a server with `server`.
  bool Connects(const ServerSecurity& server, const ClientSecurity& client) {
    const Running running(server);
    return Reaches(running.target, client);
  }
  bool Reaches(const std::string& target, const ClientSecurity& client) {
    auto credentials = MakeChannelCredentials(client, target);
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(target, *credentials, arguments);
    // Ready, or the first failure: no time decides.
    auto state = channel->GetState(/*try_to_connect=*/true);
    const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(20);
    while (state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
      if (!channel->WaitForStateChange(state, deadline)) break;
      state = channel->GetState(true);
    }
    return state == GRPC_CHANNEL_READY;
  }

  ServerSecurity Server(const std::string& name = "server", bool mutual = false) const {
    return {.cert_file = Path(name + ".pem"),
            .key_file = Path(name + ".key"),
            .client_ca_file = mutual ? Path("ca.pem") : "",
            .require_client_certificate = mutual};
  }
  ClientSecurity Client(const std::string& ca, const std::string& name = "") const {
    return {.ca_file = Path(ca),
            .cert_file = name.empty() ? "" : Path(name + ".pem"),
            .key_file = name.empty() ? "" : Path(name + ".key"),
            .token_file = ""};
  }

  const TestCa ca_{"one"};
  const TestCa other_{"other"};
  const std::string folder_;
};

TEST_F(GrpcCredentials, Handshakes) {
  EXPECT_TRUE(Connects(Server(), Client("ca.pem")));
  EXPECT_FALSE(Connects(Server(), Client("other.pem"))) << "a server of an unknown CA";
  EXPECT_FALSE(Connects(Server("elsewhere"), Client("ca.pem"))) << "another server's name";
  EXPECT_FALSE(Connects(Server(), {})) << "a plain client";
}

TEST_F(GrpcCredentials, MutualHandshakes) {
  EXPECT_TRUE(Connects(Server("server", true), Client("ca.pem", "client")));
  EXPECT_FALSE(Connects(Server("server", true), Client("ca.pem"))) << "no certificate";
  EXPECT_FALSE(Connects(Server("server", true), Client("ca.pem", "stranger")));
  ServerSecurity optional = Server("server", true);
  optional.require_client_certificate = false;
  EXPECT_TRUE(Connects(optional, Client("ca.pem")));
  EXPECT_FALSE(Connects(optional, Client("ca.pem", "stranger"))) << "asked for, so verified";
}

TEST_F(GrpcCredentials, RevokedCertificatesAreRefused) {
  const PemPair gone = ca_.Sign("client", {"URI:spiffe://quantry/role/admin"});
  const PemPair leaves = ca_.Sign("client", {"URI:spiffe://quantry/role/admin"});
  WritePair("gone", gone);
  WritePair("leaves", leaves);
  fs::create_directories(Path("crls"));
  ServerSecurity security = Server("server", true);
  security.crl_dir = Path("crls");
  security.reload = std::chrono::seconds(1);
  const auto empty = MakeServerCredentials(security);
  EXPECT_NE(empty.status().message().find("openssl rehash"), std::string::npos) << empty.status();

  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({gone.certificate}));
  const Running running(security);
  EXPECT_FALSE(Reaches(running.target, Client("ca.pem", "gone")));
  EXPECT_TRUE(Reaches(running.target, Client("ca.pem", "client")));
  EXPECT_TRUE(Reaches(running.target, Client("ca.pem", "leaves")));
  // Lists are read anew when the file of the CAs, or the server's certificate, is.
  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({gone.certificate, leaves.certificate}));
  Write("ca.pem", ca_.certificate() + "# list 2\n");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  bool reached = true;
  while (reached && std::chrono::steady_clock::now() < deadline) {
    reached = Reaches(running.target, Client("ca.pem", "leaves"));
  }
  EXPECT_FALSE(reached);
  EXPECT_TRUE(Reaches(running.target, Client("ca.pem", "client")));
}

TEST_F(GrpcCredentials, AnExpiredRevocationListLetsNobodyIn) {
  fs::create_directories(Path("crls"));
  ServerSecurity security = Server("server", true);
  security.crl_dir = Path("crls");
  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({}, std::chrono::seconds(-60)));
  EXPECT_FALSE(Connects(security, Client("ca.pem", "client")));
  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({}));
  EXPECT_TRUE(Connects(security, Client("ca.pem", "client")));
}

TEST_F(GrpcCredentials, ACaWithoutARevocationListRevokesNothing) {
  fs::create_directories(Path("crls"));
  ServerSecurity security = Server("server", true);
  security.crl_dir = Path("crls");
  Write("crls/" + other_.RevocationName(0), other_.Revoke({}));
  EXPECT_TRUE(Connects(security, Client("ca.pem", "client")));
}

TEST_F(GrpcCredentials, FilesThatCannotBeUsedAreNamed) {
  Write("text", "hello\n");
  Write("token", "qtk_abc  \n");
  Write("blank", "a b\n");
  Write("none", "");
  struct Case {
    ClientSecurity client;
    const char* wanted;
  };
  const std::string far = "example.org:7070";
  const Case cases[] = {
      {{.ca_file = Path("no.pem")}, "no.pem: wanted a readable file"},
      {{.ca_file = Path("text")}, "text: wanted a PEM certificate, got none"},
      {{.ca_file = Path("ca.pem"), .cert_file = Path("client.pem")}, "together, got one"},
      {{.ca_file = "", .cert_file = Path("client.pem"), .key_file = Path("client.key")},
       "a client certificate needs TLS"},
      {{.ca_file = Path("ca.pem"), .cert_file = Path("client.pem"), .key_file = Path("server.key")},
       "server.key: wanted the key of"},
      {{.ca_file = Path("ca.pem"), .cert_file = Path("client.pem"), .key_file = Path("text")},
       "text: wanted a PEM private key without a passphrase"},
      {{.token_file = Path("token")}, "wanted TLS to send a token to example.org:7070"},
      {{.token_file = Path("no")}, "no: wanted a file with a token, got: No such file"},
      {{.token_file = Path("none")}, "got an empty line"},
      {{.token_file = Path("blank")}, "something with blanks"},
  };
  for (const Case& test : cases) {
    const auto made = MakeChannelCredentials(test.client, far);
    ASSERT_FALSE(made.ok()) << test.wanted;
    EXPECT_NE(made.status().message().find(test.wanted), std::string::npos) << made.status();
  }
  EXPECT_EQ(*ReadToken(Path("token")), "qtk_abc");
  ServerSecurity server = Server();
  server.key_file = Path("client.key");
  EXPECT_FALSE(MakeServerCredentials(server).ok());
}

TEST_F(GrpcCredentials, FactsOfACertificate) {
  const auto facts = ReadCertificate(
      ca_.Sign("x", {"URI:spiffe://a/b", "DNS:c", "URI:d:e"}, std::chrono::seconds(100))
          .certificate);
  ASSERT_TRUE(facts.ok());
  EXPECT_EQ(facts->uris, (std::vector<std::string>{"spiffe://a/b", "d:e"}));
  const auto left = facts->not_after - std::chrono::system_clock::now();
  EXPECT_LE(left, std::chrono::seconds(100));
  EXPECT_GT(left, std::chrono::seconds(-3600));
  EXPECT_FALSE(ReadCertificate("none").ok());
  EXPECT_TRUE(CertificateExpiry(Path("server.pem")).ok());
}

}  // namespace
}  // namespace quantry
