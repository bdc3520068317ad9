#include "server/rpc/own_failure.h"

#include <chrono>

#include "common/errors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

using testing::HasSubstr;

TEST(OwnFailure, KeepsItsReasonAndItsWordsGoToTheLog) {
  const absl::Status failures[] = {
      MakeError(Reason::kFileNotFound, "cannot run /opt/engine: no such file"),
      MakeError(Reason::kDiskFull, "cannot write /data/tmp/x", {{"path", "/data/tmp/x"}}),
      MakeError(Reason::kEngineProtocol, "it wrote: /opt/lib.so: cannot open"),
      MakeError(Reason::kReadFailed, "cannot read /data/blobs/x"),
  };
  for (const absl::Status& failure : failures) {
    testing::internal::CaptureStderr();
    const absl::Status told = WithoutPlaces("make a quote", failure);
    EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(std::string(failure.message())));
    EXPECT_EQ(told.code(), failure.code());
    EXPECT_EQ(ReasonOf(told), ReasonOf(failure));
    EXPECT_EQ(told.message(), "the server cannot make a quote (" + ReasonOf(failure) +
                                  "): the cause lies with it and stands in its log; try again "
                                  "later, or tell its operator");
    EXPECT_EQ(MetadataOf(told, "path"), "");
  }
}

TEST(OwnFailure, OneWithoutAReasonIsInternal) {
  const absl::Status told = WithoutPlaces("make a quote", absl::NotFoundError("/data/blobs/x"));
  EXPECT_TRUE(HasReason(told, Reason::kInternal)) << told;
  EXPECT_EQ(told.message().find('/'), std::string::npos) << told;
}

TEST(OwnFailure, WhenToTryAgainIsKept) {
  const auto failure = MakeError(Reason::kStoreUnavailable, "/data/quantry.db is locked");
  EXPECT_EQ(RetryAfterOf(WithoutPlaces("make a quote", failure)), std::chrono::seconds(1));
}

TEST(OwnFailure, WhatTheRequestIsToBlameForIsToldInFull) {
  const absl::Status statuses[] = {
      absl::OkStatus(),
      absl::CancelledError("the caller went away"),
      MakeError(Reason::kInvalidSpec, "group_size: got 7", {{"field", "group_size"}}),
      MakeError(Reason::kSourceMissing, "/models/x is not there"),
      MakeError(Reason::kSourceForbidden, "/models/x is forbidden"),
      MakeError(Reason::kUnimplementedRpc, "no quotes for s3://x"),
      MakeError(Reason::kDeadlineExceeded, "allow more time"),
  };
  for (const absl::Status& status : statuses) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(WithoutPlaces("make a quote", status), status);
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  }
}

}  // namespace
}  // namespace quantry::server
