#include "server/auth/authenticator.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/certificates.h"
#include "common/digest.h"
#include "common/errors.h"
#include "gtest/gtest.h"
#include "server/auth/credential_watcher.h"
#include "tests/support/test_certificates.h"

namespace quantry::server {
namespace {

using testing::TestCa;

constexpr char kToken[] = "qtk_test";

std::string Line(const std::string& token, const std::string& role, const std::string& more = "") {
  return R"({"principal":"ci","role":")" + role + R"(","tenant":"acme","token_sha256":")" +
         Sha256Hex(token) + "\"" + more + "}\n";
}

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() : file_(::testing::TempDir() + "authenticator-" + std::to_string(getpid())) {
    Write(Line(kToken, "viewer"));
  }
  ~AuthenticatorTest() override { std::filesystem::remove(file_); }

  // Each write is another file, as a renamed one is.
  void Write(const std::string& text) {
    std::ofstream(file_ + ".new") << text;
    std::filesystem::rename(file_ + ".new", file_);
  }

  std::unique_ptr<Authenticator> Open() {
    auto opened = Authenticator::Open(
        {.principals_file = file_, .certificates = true, .spiffe_trust_domain = "quantry"});
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }

  // The cause of a refusal; "" when let in.
  std::string Cause(const Authenticator& auth, const Presented& presented) {
    const auto principal = auth.Authenticate(presented, now_);
    if (principal.ok()) return "";
    EXPECT_TRUE(HasReason(principal.status(), Reason::kUnauthenticated)) << principal.status();
    return MetadataOf(principal.status(), "cause");
  }
  static Presented Bearer(const std::string& token) {
    return {.authorization = "Bearer " + token, .certificate_pem = ""};
  }

  const std::string file_;
  Time now_ = std::chrono::time_point_cast<Duration>(std::chrono::system_clock::now());
};

TEST_F(AuthenticatorTest, Tokens) {
  const auto auth = Open();
  EXPECT_EQ(auth->Authenticate(Bearer(kToken), now_)->tenant, "acme");
  struct Case {
    const char *header, *cause;
  };
  const Case cases[] = {
      {"", "missing"},
      {"Bearer", "malformed"},
      {"Bearer ", "malformed"},
      {"Basic abc", "malformed"},
      {"Bearer a b", "malformed"},
      {"Bearer a,b", "malformed"},
      {"several", "malformed"},
      {"bearer qtk_test", ""},
      {"BEARER qtk_test", ""},
      {"Bearer qtk_tesT", "unknown"},
      {"Bearer qtk_tes", "unknown"},
      {"Bearer  qtk_test", "malformed"},
  };
  for (const Case& test : cases) {
    EXPECT_EQ(Cause(*auth, {.authorization = test.header, .certificate_pem = ""}), test.cause)
        << test.header;
  }
}

TEST_F(AuthenticatorTest, ExpiredTokens) {
  Write(Line(kToken, "viewer", R"(,"expire_time":"2026-01-01T00:00:00Z")"));
  const auto auth = Open();
  const Time end(std::chrono::seconds(1'767'225'600));
  now_ = end - std::chrono::microseconds(1);
  EXPECT_EQ(Cause(*auth, Bearer(kToken)), "");
  now_ = end;
  EXPECT_EQ(Cause(*auth, Bearer(kToken)), "expired");
  EXPECT_NE(auth->Authenticate(Bearer(kToken), now_)
                .status()
                .message()
                .find("ended 2026-01-01T00:00:00Z"),
            std::string::npos);
}

TEST_F(AuthenticatorTest, ReloadTakesNewTokensAndDropsOldOnes) {
  const auto auth = Open();
  const auto first = auth->generation();
  EXPECT_FALSE(*auth->Reload());
  EXPECT_EQ(auth->generation(), first);
  Write(Line("qtk_new", "admin"));
  EXPECT_TRUE(*auth->Reload());
  EXPECT_GT(auth->generation(), first);
  EXPECT_EQ(Cause(*auth, Bearer("qtk_new")), "");
  EXPECT_EQ(Cause(*auth, Bearer(kToken)), "unknown");
  // What cannot be read changes nothing.
  Write("broken");
  EXPECT_FALSE(auth->Reload().ok());
  EXPECT_EQ(Cause(*auth, Bearer("qtk_new")), "");
  std::filesystem::remove(file_);
  EXPECT_FALSE(auth->Reload().ok());
  EXPECT_EQ(Cause(*auth, Bearer("qtk_new")), "");
}

TEST_F(AuthenticatorTest, AWrongFileIsRefusedAtTheStart) {
  Write("broken");
  EXPECT_FALSE(Authenticator::Open({.principals_file = file_, .spiffe_trust_domain = ""}).ok());
}

TEST_F(AuthenticatorTest, TheProcessesOwnToken) {
  const auto auth = Open();
  auth->Trust("qtk_own", *MakePrincipal("agent", "worker", "*"));
  EXPECT_EQ(auth->Authenticate(Bearer("qtk_own"), now_)->role, Role::kWorker);
  Write(Line(kToken, "viewer") + "\n");
  ASSERT_TRUE(*auth->Reload());
  EXPECT_EQ(Cause(*auth, Bearer("qtk_own")), "") << "it is in no file";
}

TEST_F(AuthenticatorTest, Certificates) {
  Write(Line(kToken, "viewer") +
        R"({"principal":"ann","role":"admin","tenant":"acme","certificate_uri":"urn:ann"})"
        "\n" +
        R"({"principal":"w","role":"worker","certificate_uri":"spiffe://quantry/role/admin"})");
  const auto auth = Open();
  const TestCa ca("ca");
  const auto present = [&ca](const std::vector<std::string>& names) {
    return Presented{.authorization = "", .certificate_pem = ca.Sign("x", names).certificate};
  };
  EXPECT_EQ(auth->Authenticate(present({"URI:urn:ann"}), now_)->name, "ann");
  EXPECT_EQ(
      auth->Authenticate(present({"URI:spiffe://quantry/tenant/acme/role/viewer"}), now_)->role,
      Role::kViewer);
  EXPECT_EQ(auth->Authenticate(present({"URI:spiffe://quantry/role/admin"}), now_)->role,
            Role::kWorker)
      << "the file beats the name";
  EXPECT_EQ(Cause(*auth, present({})), "certificate");
  EXPECT_EQ(Cause(*auth, present({"DNS:ann"})), "certificate");
  EXPECT_EQ(Cause(*auth, present({"URI:urn:bob"})), "certificate");
  EXPECT_EQ(Cause(*auth, present({"URI:urn:ann", "URI:spiffe://quantry/role/worker"})),
            "certificate");
  EXPECT_EQ(Cause(*auth, present({"URI:spiffe://elsewhere/role/admin"})), "certificate");

  Presented both = present({"URI:urn:ann"});
  both.authorization = std::string("Bearer ") + kToken;
  EXPECT_EQ(auth->Authenticate(both, now_)->name, "ci") << "the token counts";
  both.authorization = "Bearer wrong";
  EXPECT_EQ(Cause(*auth, both), "unknown") << "a wrong token is no way back to the certificate";
}

TEST_F(AuthenticatorTest, ACertificateEndsItsPrincipal) {
  const auto auth = Open();
  const TestCa ca("ca");
  const Presented presented{
      .authorization = "",
      .certificate_pem =
          ca.Sign("x", {"URI:spiffe://quantry/role/admin"}, std::chrono::seconds(600)).certificate};
  const auto principal = auth->Authenticate(presented, now_);
  ASSERT_TRUE(principal.ok());
  EXPECT_EQ(*principal->expire_time, ReadCertificate(presented.certificate_pem)->not_after);
  now_ += std::chrono::seconds(700);
  EXPECT_EQ(Cause(*auth, presented), "expired");
}

TEST_F(AuthenticatorTest, CertificatesCountOnlyWhenAskedFor) {
  auto auth = Authenticator::Open({.principals_file = file_, .spiffe_trust_domain = "quantry"});
  ASSERT_TRUE(auth.ok());
  const TestCa ca("ca");
  EXPECT_EQ(Cause(**auth, {.authorization = "",
                           .certificate_pem =
                               ca.Sign("x", {"URI:spiffe://quantry/role/admin"}).certificate}),
            "missing");
}

TEST_F(AuthenticatorTest, TheWatcherTellsChangesOnceAndWhenCertificatesEnd) {
  const auto auth = Open();
  const TestCa ca("ca");
  const std::string certificate = file_ + ".pem";
  std::ofstream(certificate) << ca.certificate();
  const auto certificates = CheckedCertificates::OfCas(certificate);
  ASSERT_TRUE(certificates.ok()) << certificates.status();
  std::vector<bool> reloads;
  Time end;
  CredentialWatcher watcher({.auth = auth.get(),
                             .certificates = {{"client_ca", certificates->get()}},
                             .interval = std::chrono::hours(1),
                             .on_reload = [&](const absl::Status& s) { reloads.push_back(s.ok()); },
                             .on_certificate = [&](const std::string&, Time t) { end = t; }});
  EXPECT_EQ(end, ReadCertificate(ca.certificate())->not_after);
  EXPECT_TRUE(reloads.empty());
  Write(Line("qtk_new", "admin"));
  watcher.Look();
  Write("broken");
  watcher.Look();
  watcher.Look();
  Write(Line(kToken, "admin"));
  watcher.Look();
  EXPECT_EQ(reloads, (std::vector<bool>{true, false, true}));
  std::filesystem::remove(certificate);
}

TEST_F(AuthenticatorTest, TheWatcherTellsTheEndOfTheCertificateInUse) {
  const TestCa ca("ca");
  const std::string certificate = file_ + ".pair.pem";
  const std::string key = file_ + ".pair.key";
  const auto pair = ca.Sign("x", {});
  const auto next = ca.Sign("x", {}, std::chrono::hours(48));
  std::ofstream(certificate) << pair.certificate;
  std::ofstream(key) << pair.key;
  const auto certificates = CheckedCertificates::OfPair(certificate, key);
  ASSERT_TRUE(certificates.ok()) << certificates.status();
  Time end;
  int unusable = 0;
  std::vector<std::pair<std::string, bool>> looks;
  CredentialWatcher watcher(
      {.certificates = {{"server", certificates->get()}},
       .interval = std::chrono::hours(1),
       .on_certificate = [&](const std::string&, Time t) { end = t; },
       .on_unusable = [&] { ++unusable; },
       .on_look = [&](const std::string& credential,
                      bool usable) { looks.emplace_back(credential, usable); }});
  EXPECT_EQ(end, ReadCertificate(pair.certificate)->not_after);
  std::ofstream(certificate) << next.certificate;
  watcher.Look();
  EXPECT_EQ(unusable, 0) << "the key may be on its way";
  watcher.Look();
  watcher.Look();
  EXPECT_EQ(end, ReadCertificate(pair.certificate)->not_after) << "the next has no key yet";
  EXPECT_EQ(unusable, 1) << "told once";
  std::ofstream(key) << next.key;
  watcher.Look();
  EXPECT_EQ(end, ReadCertificate(next.certificate)->not_after);
  EXPECT_EQ(unusable, 1);
  using Look = std::pair<std::string, bool>;
  EXPECT_EQ(looks, (std::vector<Look>{{"server", true},
                                      {"server", false},
                                      {"server", false},
                                      {"server", false},
                                      {"server", true}}));
  std::filesystem::remove(certificate);
  std::filesystem::remove(key);
}

}  // namespace
}  // namespace quantry::server
