#include "worker/agent/fetch_rules.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <utility>

#include "gtest/gtest.h"

namespace quantry::agent {
namespace {

TEST(FetchRulesTest, PublicAddresses) {
  for (const char* text : {"8.8.8.8", "1.1.1.1", "172.32.0.1", "192.169.0.1"}) {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    ASSERT_EQ(inet_pton(AF_INET, text, &v4.sin_addr), 1);
    EXPECT_TRUE(IsPublicAddress(reinterpret_cast<sockaddr&>(v4))) << text;
  }
  for (const char* text :
       {"0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1",
        "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
        "203.0.113.9", "224.0.0.1", "255.255.255.255"}) {
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    ASSERT_EQ(inet_pton(AF_INET, text, &v4.sin_addr), 1);
    EXPECT_FALSE(IsPublicAddress(reinterpret_cast<sockaddr&>(v4))) << text;
  }
  const std::pair<const char*, bool> v6s[] = {{"2606:4700::1111", true},
                                              {"::1", false},
                                              {"::", false},
                                              {"fe80::1", false},
                                              {"fc00::1", false},
                                              {"ff02::1", false},
                                              {"::ffff:127.0.0.1", false},
                                              {"64:ff9b::7f00:1", false},
                                              {"64:ff9b::a00:1", false},
                                              {"64:ff9b::808:808", true},
                                              {"64:ff9b:1::808:808", false},
                                              {"2001:db8::1", false},
                                              {"2002:7f00:1::", false},
                                              {"2001:0:7f00:1::", false},
                                              {"2001:4860:4860::8888", true}};
  for (const auto& [text, is_public] : v6s) {
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    ASSERT_EQ(inet_pton(AF_INET6, text, &v6.sin6_addr), 1);
    EXPECT_EQ(IsPublicAddress(reinterpret_cast<sockaddr&>(v6)), is_public) << text;
  }
}

TEST(FetchRulesTest, ListedHosts) {
  const std::vector<std::string> listed = {"cdn.example.com", "*.hf.example"};
  for (const char* host : {"cdn.example.com", "a.hf.example", "a.b.hf.example"}) {
    EXPECT_TRUE(IsListedHost(host, listed)) << host;
  }
  for (const char* host :
       {"", "example.com", "xcdn.example.com", "hf.example", "ahf.example", "a.hf.example.evil"}) {
    EXPECT_FALSE(IsListedHost(host, listed)) << host;
  }
}

}  // namespace
}  // namespace quantry::agent
