#include "common/http_host.h"

#include "gtest/gtest.h"

namespace quantry {
namespace {

std::string Head(const std::string& host) {
  return "GET /status.json HTTP/1.1\r\nUser-Agent: x\r\nHost: " + host + "\r\nAccept: */*";
}

TEST(HttpHostRule, AddressesAndLocalhostPass) {
  const HttpHostRule rule({}, false);
  for (const char* host :
       {"127.0.0.1:7072", "127.0.0.1", "localhost:7072", "LOCALHOST", "[::1]:7072", "[::1]",
        "10.0.3.7:8072", "127.8.8.8:1", "  localhost:80  ", "[fd00::7]:8072"}) {
    EXPECT_EQ(rule.Refusal(Head(host)), "") << host;
  }
  EXPECT_EQ(rule.Refusal("GET / HTTP/1.0"), "");
  EXPECT_EQ(rule.Refusal("GET / HTTP/1.1\r\nX-Forwarded-Host: evil.example"), "");
}

TEST(HttpHostRule, OtherNamesAreRefused) {
  const HttpHostRule rule({}, false);
  for (const char* host :
       {"evil.example:7072", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example",
        "127.0.0.1:80.evil.example", "evil.example:80:80", "", "[::1", "[::1]evil", "[evil]",
        "a@localhost", "localhost,evil.example", "0x7f000001", "127.1", "2130706433",
        "localhost."}) {
    EXPECT_NE(rule.Refusal(Head(host)), "") << host;
  }
  EXPECT_NE(rule.Refusal("GET / HTTP/1.1\r\nHost: localhost\r\nhost: evil.example"), "");
  EXPECT_NE(rule.Refusal("GET / HTTP/1.1\r\nhOsT:evil.example"), "");
}

TEST(HttpHostRule, TheAnswerSaysWhatToDo) {
  const HttpHostRule rule({}, false);
  const std::string answer = rule.Refusal(Head("Status.Example.com:443"));
  EXPECT_NE(answer.find("'status.example.com'"), std::string::npos) << answer;
  EXPECT_NE(answer.find("--admin-hosts=status.example.com,"), std::string::npos) << answer;
  EXPECT_EQ(rule.Refusal(Head("<b>evil</b>")).find('<'), std::string::npos);
}

TEST(HttpHostRule, ListedNamesPass) {
  const HttpHostRule rule({"Status.example.com", "gate"}, false);
  EXPECT_EQ(rule.Refusal(Head("status.example.com")), "");
  EXPECT_EQ(rule.Refusal(Head("gate:8443")), "");
  EXPECT_NE(rule.Refusal(Head("a.status.example.com")), "");
}

TEST(HttpHostRule, AnyIsAny) {
  EXPECT_EQ(HttpHostRule({}, true).Refusal(Head("quantryd.quantry.svc:7072")), "");
}

TEST(HttpHostRule, NamesAreChecked) {
  EXPECT_TRUE(CheckHostNames({"status.example.com", "Gate", "10.0.0.1"}).ok());
  for (const char* name : {"", "*.example.com", "https://a.example", "a:80", "a b", "a/b"}) {
    const absl::Status status = CheckHostNames({"fine", name});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

}  // namespace
}  // namespace quantry
