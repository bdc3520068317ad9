#include "common/grpc_credentials.h"

#include <grpcpp/generic/async_generic_service.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <thread>

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

  // The certificates of a server and whatever else its security is.
  struct ServerSetup {
    std::shared_ptr<CheckedCertificates> identity;
    std::shared_ptr<CheckedCertificates> client_ca = nullptr;
    ServerSecurity security = {};

    void Look() const {
      identity->Look([](const std::string&) {});
      if (client_ca != nullptr) client_ca->Look([](const std::string&) {});
    }
  };

  struct Running {
    explicit Running(const ServerSetup& given) : setup(given) {
      ServerSecurity security = setup.security;
      security.identity = setup.identity.get();
      security.client_ca = setup.client_ca.get();
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

    const ServerSetup setup;
    grpc::CallbackGenericService service;
    std::unique_ptr<grpc::Server> server;
    std::string target;
  };

  // Whether a client with `client` reaches a server with `server`.
  bool Connects(const ServerSetup& server, const ClientSecurity& client) {
    const Running running(server);
    return Reaches(running.target, client);
  }
  bool Reaches(const std::string& target, const ClientSecurity& client) {
    return Reaches(target, Credentials(client));
  }
  static std::shared_ptr<grpc::ChannelCredentials> Credentials(const ClientSecurity& client) {
    auto credentials = MakeChannelCredentials(client, "127.0.0.1:1");
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    return *std::move(credentials);
  }
  bool Reaches(const std::string& target,
               const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(target, credentials, arguments);
    // Ready, or the first failure: no time decides.
    auto state = channel->GetState(/*try_to_connect=*/true);
    const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(20);
    while (state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
      if (!channel->WaitForStateChange(state, deadline)) break;
      state = channel->GetState(true);
    }
    return state == GRPC_CHANNEL_READY;
  }

  // Whether the client reaches it, or does not, within 20 s: when gRPC has looked at
  // the certificates.
  bool Comes(bool wanted, const std::string& target,
             const std::shared_ptr<grpc::ChannelCredentials>& client) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (Reaches(target, client) != wanted) {
      if (std::chrono::steady_clock::now() > deadline) return false;
    }
    return true;
  }
  bool Comes(bool wanted, const std::string& target, const ClientSecurity& client) {
    return Comes(wanted, target, Credentials(client));
  }

  ServerSetup Server(const std::string& name = "server", bool mutual = false) const {
    ServerSetup setup{.identity =
                          *CheckedCertificates::OfPair(Path(name + ".pem"), Path(name + ".key"))};
    if (mutual) setup.client_ca = *CheckedCertificates::OfCas(Path("ca.pem"));
    setup.security.require_client_certificate = mutual;
    return setup;
  }
  ClientSecurity Client(const std::string& ca, const std::string& name = "") const {
    return {.ca_file = Path(ca),
            .cert_file = name.empty() ? "" : Path(name + ".pem"),
            .key_file = name.empty() ? "" : Path(name + ".key"),
            .reload = std::chrono::seconds(1)};
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
  ServerSetup optional = Server("server", true);
  optional.security.require_client_certificate = false;
  EXPECT_TRUE(Connects(optional, Client("ca.pem")));
  EXPECT_FALSE(Connects(optional, Client("ca.pem", "stranger"))) << "asked for, so verified";
}

TEST_F(GrpcCredentials, RevokedCertificatesAreRefused) {
  const PemPair gone = ca_.Sign("client", {"URI:spiffe://quantry/role/admin"});
  const PemPair leaves = ca_.Sign("client", {"URI:spiffe://quantry/role/admin"});
  WritePair("gone", gone);
  WritePair("leaves", leaves);
  fs::create_directories(Path("crls"));
  ServerSetup setup = Server("server", true);
  setup.security.crl_dir = Path("crls");
  const auto empty = MakeServerCredentials(setup.security);
  EXPECT_NE(empty.status().message().find("openssl rehash"), std::string::npos) << empty.status();

  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({gone.certificate}));
  const Running running(setup);
  EXPECT_FALSE(Reaches(running.target, Client("ca.pem", "gone")));
  EXPECT_TRUE(Reaches(running.target, Client("ca.pem", "client")));
  EXPECT_TRUE(Reaches(running.target, Client("ca.pem", "leaves")));
  // Lists are read anew when the file of the CAs, or the server's certificate, is.
  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({gone.certificate, leaves.certificate}));
  Write("ca.pem", ca_.certificate() + "# list 2\n");
  running.setup.Look();
  EXPECT_TRUE(Comes(false, running.target, Client("ca.pem", "leaves")));
  EXPECT_TRUE(Reaches(running.target, Client("ca.pem", "client")));
}

// Each of the next three breaks one of the files that gRPC reads together and renews
// another: once that one shows, gRPC has seen what became of the broken one.
TEST_F(GrpcCredentials, AServersPairStaysInUseUntilTheNextFits) {
  const PemPair first = ca_.Sign("server", {"IP:127.0.0.1"});
  const PemPair next = other_.Sign("server", {"IP:127.0.0.1"});
  WritePair("server", first);
  const Running running(Server("server", true));
  struct Case {
    const char* name;
    const char* file;
    std::optional<std::string> text;
  };
  const Case cases[] = {
      {"before its key", "server.pem", next.certificate},
      {"half of it", "server.pem", next.certificate.substr(0, next.certificate.size() / 2)},
      {"an empty key", "server.key", ""},
      {"no key", "server.key", std::nullopt},
  };
  Write("server-ca.pem", ca_.certificate());
  bool strangers = false;
  for (const Case& test : cases) {
    SCOPED_TRACE(test.name);
    WritePair("server", first);
    fs::remove(Path(test.file));
    if (test.text) Write(test.file, *test.text);
    strangers = !strangers;
    Write("ca.pem", ca_.certificate() + (strangers ? other_.certificate() : ""));
    running.setup.Look();
    EXPECT_TRUE(Comes(strangers, running.target, Client("server-ca.pem", "stranger")));
    EXPECT_TRUE(Reaches(running.target, Client("server-ca.pem", "client")));
  }
  WritePair("server", next);
  running.setup.Look();
  EXPECT_TRUE(Comes(true, running.target, Client("other.pem", "client")));
  EXPECT_FALSE(Reaches(running.target, Client("server-ca.pem", "client")));
}

TEST_F(GrpcCredentials, AServersCasStayInUseUntilTheNextCanBeUsed) {
  const Running running(Server("server", true));
  Write("ca.pem", "hello\n");
  WritePair("server", other_.Sign("server", {"IP:127.0.0.1"}));
  running.setup.Look();
  EXPECT_TRUE(Comes(true, running.target, Client("other.pem", "client")));
  EXPECT_FALSE(Reaches(running.target, Client("other.pem", "stranger")));
}

TEST_F(GrpcCredentials, AClientsFilesStayInUseUntilTheNextCanBeUsed) {
  WritePair("of_other", other_.Sign("server", {"IP:127.0.0.1"}));
  const Running one(Server("server", true));
  const Running two(Server("of_other", true));
  Write("ca.pem", other_.certificate());
  const Running three(Server("of_other", true));  // takes other's clients
  const PemPair first = ca_.Sign("client", {});
  const PemPair next = other_.Sign("client", {});
  Write("my_ca.pem", ca_.certificate());
  WritePair("mine", first);
  std::atomic<int> told = 0;
  ClientSecurity security = Client("my_ca.pem", "mine");
  security.on_unusable = [&](const std::string&) { ++told; };
  const auto credentials = Credentials(security);
  EXPECT_TRUE(Reaches(one.target, credentials));

  Write("mine.pem", next.certificate);
  Write("my_ca.pem", other_.certificate());
  EXPECT_TRUE(Comes(true, two.target, credentials)) << "the pair before";
  // At the second look at the files, which may come after gRPC's at the CA.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (told == 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_GE(told, 1);
  EXPECT_FALSE(Reaches(three.target, credentials));
  Write("mine.key", next.key);
  EXPECT_TRUE(Comes(true, three.target, credentials)) << "the next pair";
  Write("my_ca.pem", "hello\n");
  WritePair("mine", first);
  EXPECT_TRUE(Comes(true, two.target, credentials)) << "the CA before";
}

TEST_F(GrpcCredentials, AnExpiredRevocationListLetsNobodyIn) {
  fs::create_directories(Path("crls"));
  ServerSetup setup = Server("server", true);
  setup.security.crl_dir = Path("crls");
  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({}, std::chrono::seconds(-60)));
  EXPECT_FALSE(Connects(setup, Client("ca.pem", "client")));
  Write("crls/" + ca_.RevocationName(0), ca_.Revoke({}));
  EXPECT_TRUE(Connects(setup, Client("ca.pem", "client")));
}

TEST_F(GrpcCredentials, ACaWithoutARevocationListRevokesNothing) {
  fs::create_directories(Path("crls"));
  ServerSetup setup = Server("server", true);
  setup.security.crl_dir = Path("crls");
  Write("crls/" + other_.RevocationName(0), other_.Revoke({}));
  EXPECT_TRUE(Connects(setup, Client("ca.pem", "client")));
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
}

}  // namespace
}  // namespace quantry
