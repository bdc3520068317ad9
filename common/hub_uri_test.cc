#include "common/hub_uri.h"

#include <gtest/gtest.h>

namespace quantry {
namespace {

TEST(HubUriTest, Parses) {
  const struct {
    const char* uri;
    const char* repo;
    const char* revision;
    bool pinned;
  } cases[] = {
      {"hf://org/name", "org/name", "main", false},
      {"hf://gpt2", "gpt2", "main", false},
      {"hf://Org-1/My.Model_2@v1.0", "Org-1/My.Model_2", "v1.0", false},
      {"hf://org/name@refs/pr/3", "org/name", "refs/pr/3", false},
      {"hf://org/name@0123456789abcdef0123456789abcdef01234567", "org/name",
       "0123456789abcdef0123456789abcdef01234567", true},
  };
  for (const auto& c : cases) {
    const auto parsed = ParseHubUri(c.uri);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->repo, c.repo);
    EXPECT_EQ(parsed->revision, c.revision);
    EXPECT_EQ(parsed->pinned(), c.pinned) << c.uri;
  }
}

TEST(HubUriTest, Refuses) {
  for (const char* uri : {"",
                          "hf://",
                          "hf:///name",
                          "hf://org/",
                          "hf://org/name/more",
                          "hf://../name",
                          "hf://org/..",
                          "hf://org/name@",
                          "hf://org/name@../x",
                          "hf://org/name@a//b",
                          "hf://org/name@/a",
                          "hf://org/na me",
                          "hf://org/name?x=1",
                          "hf://org/name#x",
                          "hf://org/na%2fme",
                          "hf://org/name@a\nb",
                          "hf://user:pass@host/name",
                          "s3://bucket/name",
                          "https://hub/org/name",
                          "hf://.org/name",
                          "hf://-org/name"}) {
    EXPECT_FALSE(ParseHubUri(uri).ok()) << uri;
  }
}

}  // namespace
}  // namespace quantry
