#include "common/checked_certificates.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "common/certificates.h"
#include "common/errors.h"
#include "tests/support/test_certificates.h"

namespace quantry {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::PemPair;
using testing::TestCa;
using testing::WriteFile;

std::string TextOf(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class CheckedCertificatesTest : public ::testing::Test {
 protected:
  CheckedCertificatesTest()
      : folder_(::testing::TempDir() + "checked_certificates-" + std::to_string(getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    WritePair(first_);
  }
  ~CheckedCertificatesTest() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void WritePair(const PemPair& pair) {
    WriteFile(Path("a.pem"), pair.certificate);
    WriteFile(Path("a.key"), pair.key);
  }
  std::unique_ptr<CheckedCertificates> OpenPair() {
    auto opened = CheckedCertificates::OfPair(Path("a.pem"), Path("a.key"));
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }
  // What a look at them says; "" when it takes them, or has not seen the same before.
  static std::string Look(CheckedCertificates& certificates) {
    std::string heard;
    certificates.Look([&](const std::string& why) { heard = why; });
    return heard;
  }
  // What the second of two looks says.
  static std::string Refusal(CheckedCertificates& certificates) {
    EXPECT_EQ(Look(certificates), "");
    return Look(certificates);
  }

  const TestCa ca_{"ca"};
  const PemPair first_ = ca_.Sign("x", {});
  const PemPair second_ = ca_.Sign("x", {}, std::chrono::hours(48));
  const std::string folder_;
};

TEST_F(CheckedCertificatesTest, APairThatFitsIsTaken) {
  const auto certificates = OpenPair();
  const std::string path = certificates->path();
  const Time end = certificates->end();
  EXPECT_EQ(TextOf(path), first_.key + first_.certificate);
  EXPECT_EQ(end, ReadCertificate(first_.certificate)->not_after);
  WritePair(second_);
  EXPECT_EQ(TextOf(path), first_.key + first_.certificate) << "nobody looked yet";
  EXPECT_EQ(Refusal(*certificates), "");
  EXPECT_EQ(certificates->path(), path);
  EXPECT_EQ(TextOf(path), second_.key + second_.certificate);
  EXPECT_GT(certificates->end(), end);
}

TEST_F(CheckedCertificatesTest, APairThatCannotBeUsedChangesNothing) {
  const auto certificates = OpenPair();
  const Time end = certificates->end();
  const std::string half = second_.certificate.substr(0, second_.certificate.size() / 2);
  struct Case {
    const char* file;
    const std::string* text;  // null: the file is gone
    const char* wanted;
  };
  const std::string half_chain = first_.certificate + half;
  const std::string garbage = "hello\n";
  const std::string nothing;
  const Case cases[] = {
      {"a.pem", &second_.certificate, "a.key: wanted the key of"},
      {"a.key", &second_.key, "a.key: wanted the key of"},
      {"a.pem", &half, "a.pem: wanted a PEM certificate, got none"},
      {"a.pem", &half_chain, "a.pem: wanted PEM certificates, got one that is cut off"},
      {"a.pem", &garbage, "a.pem: wanted a PEM certificate, got none"},
      {"a.key", &garbage, "a.key: wanted a PEM private key"},
      {"a.pem", &nothing, "a.pem: wanted a PEM certificate, got none"},
      {"a.key", &nothing, "a.key: wanted a PEM private key"},
      {"a.pem", nullptr, "a.pem: wanted a readable file, got No such file"},
      {"a.key", nullptr, "a.key: wanted a readable file, got No such file"},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(std::string(test.file) + ", " + (test.text != nullptr ? *test.text : "gone"));
    WritePair(first_);
    EXPECT_EQ(Refusal(*certificates), "");
    fs::remove(Path(test.file));
    if (test.text != nullptr) WriteFile(Path(test.file), *test.text);
    const std::string heard = Refusal(*certificates);
    EXPECT_THAT(heard, HasSubstr(test.wanted));
    EXPECT_THAT(heard, HasSubstr("what was read before stays in use and ends at 20"));
    EXPECT_EQ(Look(*certificates), "") << "told once";
    EXPECT_EQ(TextOf(certificates->path()), first_.key + first_.certificate);
    EXPECT_EQ(certificates->end(), end);
    EXPECT_FALSE(CheckedCertificates::OfPair(Path("a.pem"), Path("a.key")).ok());
  }
  WritePair(second_);
  EXPECT_EQ(Refusal(*certificates), "");
  EXPECT_EQ(TextOf(certificates->path()), second_.key + second_.certificate);
}

TEST_F(CheckedCertificatesTest, ALookBetweenTwoRenamesOfARotationIsNotTold) {
  const auto certificates = OpenPair();
  for (const PemPair& pair : {second_, first_}) {
    WriteFile(Path("a.pem"), pair.certificate);
    EXPECT_EQ(Look(*certificates), "");
    WriteFile(Path("a.key"), pair.key);
    EXPECT_EQ(Look(*certificates), "");
    EXPECT_EQ(TextOf(certificates->path()), pair.key + pair.certificate);
  }
  // The same failure is news again once files were taken in between.
  for (int i = 0; i < 2; ++i) {
    fs::remove(Path("a.key"));
    EXPECT_THAT(Refusal(*certificates), HasSubstr("No such file"));
    WritePair(first_);
    EXPECT_EQ(Look(*certificates), "");
  }
}

// One file with both is what some tools write.
TEST_F(CheckedCertificatesTest, CertificatesInTheKeysFileAreNotOfTheChain) {
  WriteFile(Path("a.key"), second_.certificate + first_.key);
  EXPECT_EQ(TextOf(OpenPair()->path()), first_.key + first_.certificate);
  WritePair(
      {.certificate = first_.certificate + first_.key, .key = first_.certificate + first_.key});
  EXPECT_EQ(TextOf(OpenPair()->path()), first_.key + first_.certificate + first_.key);
}

TEST_F(CheckedCertificatesTest, CasAreTakenAsTheyAre) {
  const std::string text =
      "# list 7\n" + ca_.certificate() + "and\n" + TestCa("other").certificate() + "# end\n";
  WriteFile(Path("ca.pem"), text);
  auto cas = CheckedCertificates::OfCas(Path("ca.pem"));
  ASSERT_TRUE(cas.ok()) << cas.status();
  EXPECT_EQ(TextOf((*cas)->path()), text);
  WriteFile(Path("ca.pem"), "hello\n");
  EXPECT_THAT(Refusal(**cas), HasSubstr("ca.pem: wanted a PEM certificate, got none"));
  EXPECT_EQ(TextOf((*cas)->path()), text);
  const auto refused = CheckedCertificates::OfCas(Path("ca.pem"));
  EXPECT_TRUE(HasReason(refused.status(), Reason::kInvalidConfig)) << refused.status();
}

TEST_F(CheckedCertificatesTest, ACopyStaysForThreadsOfGrpc) {
  auto certificates = OpenPair();
  const std::string path = certificates->path();
  certificates.reset();
  EXPECT_EQ(TextOf(path), first_.key + first_.certificate);
}

TEST_F(CheckedCertificatesTest, ChildProcessesDoNotGetTheCopy) {
  const auto certificates = OpenPair();
  const int copy = std::stoi(fs::path(certificates->path()).filename());
  EXPECT_EQ(fcntl(copy, F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(Refusal(*certificates), "");
  EXPECT_EQ(fcntl(copy, F_GETFD), FD_CLOEXEC) << "after a look, too";
}

}  // namespace
}  // namespace quantry
