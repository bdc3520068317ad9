#include "server/rpc/page_token.h"

#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/escaping.h"
#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

const Cursor kCursor{.create_time = FromUnixMicros(1'700'000'000'123'456), .uid = "u-1"};

TEST(PageTokens, RoundTrip) {
  const PageTokens tokens(std::string(32, 'k'));
  EXPECT_EQ(*tokens.DecodeCursor("jobs\nt\n", tokens.Encode("jobs\nt\n", kCursor)), kCursor);
  EXPECT_EQ(*tokens.DecodeSequence("events\nx", tokens.Encode("events\nx", std::int64_t{42})), 42);
  EXPECT_EQ(*tokens.DecodeId("workers", tokens.EncodeId("workers", "gpu 7")), "gpu 7");
}

TEST(PageTokens, AreBoundToTheirList) {
  const PageTokens tokens(std::string(32, 'k'));
  const std::string token = tokens.Encode("jobs\nt\nstate = RUNNING", kCursor);
  for (const char* other : {"jobs\nt\n", "jobs\nu\nstate = RUNNING", "artifacts\nt", ""}) {
    EXPECT_TRUE(HasReason(tokens.DecodeCursor(other, token).status(), Reason::kInvalidPageToken));
  }
}

TEST(PageTokens, EveryForgeryIsRefused) {
  const PageTokens tokens(std::string(32, 'k'));
  const std::string token = tokens.Encode("s", kCursor);
  for (size_t i = 0; i < token.size(); ++i) {
    std::string forged = token;
    forged[i] = forged[i] == 'A' ? 'B' : 'A';
    std::string before;
    std::string after;
    absl::WebSafeBase64Unescape(token, &before);
    // A change in the unused bits of the last character means the same bytes.
    if (absl::WebSafeBase64Unescape(forged, &after) && before == after) continue;
    EXPECT_FALSE(tokens.DecodeCursor("s", forged).ok()) << i;
  }
  for (const std::string& nonsense :
       {std::string("x"), std::string("!!!"), std::string(600, 'A'), std::string(24, 'A'),
        token.substr(0, token.size() / 2), std::string(1, '\0')}) {
    EXPECT_TRUE(HasReason(tokens.DecodeCursor("s", nonsense).status(), Reason::kInvalidPageToken));
  }
  EXPECT_FALSE(PageTokens(std::string(32, 'x')).DecodeCursor("s", token).ok());
  EXPECT_FALSE(tokens.DecodeSequence("s", token).ok());  // of the other kind
}

TEST(PageTokens, TheKeyIsKeptInItsFile) {
  const std::string path = testing::TempDir() + "page_token_key-" + std::to_string(getpid());
  unlink(path.c_str());
  const auto first = PageTokens::Open(path);
  ASSERT_TRUE(first.ok());
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const auto second = PageTokens::Open(path);
  EXPECT_TRUE(second->DecodeCursor("s", first->Encode("s", kCursor)).ok());
  unlink(path.c_str());
}

TEST(PageTokens, TellWhoseTheyAre) {
  const PageTokens tokens(std::string(32, 'k'));
  EXPECT_EQ(tokens.StoreId(), PageTokens(std::string(32, 'k')).StoreId());
  EXPECT_NE(tokens.StoreId(), PageTokens(std::string(32, 'x')).StoreId());
  EXPECT_EQ(tokens.StoreId().size(), 32);
}

}  // namespace
}  // namespace quantry::server
