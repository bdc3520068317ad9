#include "common/listen_address.h"

#include "gtest/gtest.h"

namespace quantry {
namespace {

TEST(ListenAddress, ParsesAndPrints) {
  EXPECT_EQ(ParseListenAddress("127.0.0.1:7070")->ToString(), "127.0.0.1:7070");
  EXPECT_EQ(ParseListenAddress("[::1]:0")->ToString(), "[::1]:0");
  EXPECT_EQ(ParseListenAddress("localhost:1")->ToString(), "127.0.0.1:1");
}

TEST(ListenAddress, RefusesNonsense) {
  for (const char* text :
       {"", ":", ":7070", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536",
        "127.0.0.1:-1", "::1:7070", "example.org:1", "127.0.0.1: 1", "[]:1"}) {
    EXPECT_FALSE(ParseListenAddress(text).ok()) << text;
  }
}

TEST(ListenAddress, BeyondLoopbackSaysWhatIsMissing) {
  for (const char* text : {"127.0.0.1:1", "127.9.9.9:1", "[::1]:1"}) {
    EXPECT_TRUE(RequireLoopback(*ParseListenAddress(text), "--x").ok()) << text;
  }
  for (const char* text : {"0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[::ffff:127.0.0.1]:1"}) {
    const absl::Status status = RequireLoopback(*ParseListenAddress(text), "--x");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << text;
    EXPECT_NE(status.message().find("without --x"), std::string::npos);
  }
}

}  // namespace
}  // namespace quantry
