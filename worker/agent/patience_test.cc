#include "worker/agent/patience.h"

#include <vector>

#include "common/errors.h"
#include "gtest/gtest.h"

namespace quantry::agent {
namespace {

using std::chrono::milliseconds;

// Answers what it is given, the last one for ever.
struct Steps {
  explicit Steps(std::vector<absl::Status> the_answers) : answers(std::move(the_answers)) {}
  absl::Status operator()() {
    const std::size_t call = std::min<std::size_t>(calls++, answers.size() - 1);
    return answers[call];
  }
  std::vector<absl::Status> answers;
  std::size_t calls = 0;
};

constexpr Patience::Limits kShort{
    .total = milliseconds(40), .first = milliseconds(1), .longest = milliseconds(4)};

class PatienceTest : public testing::Test {
 protected:
  absl::Status Try(Patience::Limits limits, Steps& steps) {
    return Patience(
               limits, [this] { return running_; },
               [this](const std::string& text) { told_.push_back(text); })
        .Try([&steps] { return steps(); });
  }
  absl::Status running_;
  std::vector<std::string> told_;
};

TEST_F(PatienceTest, RepeatsUntilTheStoreAnswers) {
  Steps steps({absl::UnavailableError("503"), absl::UnavailableError("503"), absl::OkStatus()});
  EXPECT_TRUE(Try({.total = milliseconds(60000), .first = milliseconds(1)}, steps).ok());
  EXPECT_EQ(steps.calls, 3u);
  ASSERT_EQ(told_.size(), 2u);
  EXPECT_EQ(told_[0], "the store does not answer, trying again in 1 s: 503");
}

TEST_F(PatienceTest, GivesUpWithTheLastAnswer) {
  Steps steps({absl::UnavailableError("first"), absl::UnavailableError("then")});
  EXPECT_EQ(Try(kShort, steps), absl::UnavailableError("then"));
  EXPECT_GT(steps.calls, 2u);
}

TEST_F(PatienceTest, OtherAnswersStand) {
  for (const absl::Status& answer :
       {absl::OkStatus(), absl::PermissionDeniedError("key"), absl::NotFoundError("bucket"),
        absl::DataLossError("bytes"), absl::CancelledError("stop"),
        MakeError(Reason::kStorageError, "a listing nobody can read")}) {
    Steps steps({answer});
    EXPECT_EQ(Try(kShort, steps), answer);
    EXPECT_EQ(steps.calls, 1u) << answer;
  }
  EXPECT_TRUE(told_.empty());
}

TEST_F(PatienceTest, NoneMeansOneTry) {
  Steps steps({absl::UnavailableError("503")});
  EXPECT_EQ(Try({}, steps), absl::UnavailableError("503"));
  EXPECT_EQ(steps.calls, 1u);
}

TEST_F(PatienceTest, AnAttemptThatMustStopDoesNotWait) {
  Steps steps({absl::UnavailableError("503")});
  running_ = absl::CancelledError("cancelled");
  EXPECT_EQ(Try({.total = milliseconds(60000), .first = milliseconds(60000)}, steps), running_);
  EXPECT_EQ(steps.calls, 1u);
}

}  // namespace
}  // namespace quantry::agent
