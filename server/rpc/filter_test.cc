#include "server/rpc/filter.h"

#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

TEST(JobFilter, Empty) {
  for (const char* text : {"", "   "}) {
    const auto filter = ParseJobFilter(text);
    ASSERT_TRUE(filter.ok());
    EXPECT_TRUE(filter->states.empty() && filter->method.empty() && filter->labels.empty());
  }
}

TEST(JobFilter, AllTerms) {
  const auto filter = ParseJobFilter(
      R"( state = RUNNING AND method=awq AND labels.team = "n \"l\" \\ p" AND labels.run.id=7-a)");
  ASSERT_TRUE(filter.ok()) << filter.status();
  EXPECT_EQ(filter->states, std::vector<JobState>{JobState::kRunning});
  EXPECT_EQ(filter->method, "awq");
  EXPECT_EQ(filter->labels.at("team"), "n \"l\" \\ p");
  EXPECT_EQ(filter->labels.at("run.id"), "7-a");
}

TEST(JobFilter, EmptyLabelValueMayBeQuoted) {
  EXPECT_EQ(ParseJobFilter("labels.a = \"\"")->labels.at("a"), "");
}

TEST(JobFilter, MistakesAreNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"state", "= after the field"},
      {"state =", "a value"},
      {"state = PAUSED", "one of QUEUED, RUNNING"},
      {"state = running", "one of QUEUED"},
      {"state = RUNNING OR state = QUEUED", "AND between terms"},
      {"state = RUNNING AND", "a term after AND"},
      {"AND state = RUNNING", "= after the field"},
      {"state = RUNNING AND state = QUEUED", "each once"},
      {"method = awq AND method = rtn", "each once"},
      {"labels.a = 1 AND labels.a = 2", "each once"},
      {"labels. = 1", "labels.KEY"},
      {"owner = me", "got 'owner'"},
      {"labels.a = \"open", "a value"},
      {"labels.a = \"open\\", "a value"},
      {"= 1", "state, method or labels.KEY"},
      {"state != RUNNING", "= after the field"},
      {"(state = RUNNING)", "state, method or labels.KEY"},
      {std::string("labels.a = \0", 12), "a value"},
      {std::string(3000, 'a'), "at most 2048 bytes"},
  };
  for (const auto& [text, wanted] : cases) {
    const auto filter = ParseJobFilter(text);
    ASSERT_FALSE(filter.ok()) << text;
    EXPECT_TRUE(HasReason(filter.status(), Reason::kInvalidFilter)) << text;
    EXPECT_NE(filter.status().message().find(wanted), std::string::npos) << filter.status();
  }
}

TEST(JobFilter, LabelTermsAreBounded) {
  std::string text = "state = QUEUED";
  for (int i = 0; i < 17; ++i) text += " AND labels.k" + std::to_string(i) + " = v";
  EXPECT_FALSE(ParseJobFilter(text).ok());
}

// Every prefix and every single-byte change is answered, never a crash.
TEST(JobFilter, SurvivesDamage) {
  const std::string good = "state = RUNNING AND labels.team = \"a\\\"b\" AND method = awq";
  for (size_t i = 0; i < good.size(); ++i) {
    (void)ParseJobFilter(good.substr(0, i));
    for (int byte = 0; byte < 256; byte += 7) {
      std::string damaged = good;
      damaged[i] = static_cast<char>(byte);
      (void)ParseJobFilter(damaged);
    }
  }
}

}  // namespace
}  // namespace quantry::server
