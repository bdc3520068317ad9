#include "common/errors.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace quantry {
namespace {

using std::chrono::seconds;

std::string ErrorsPage() {
  std::ifstream file(std::string(QUANTRY_SOURCE_DIR) + "/docs/api/errors.md");
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(ReasonTableTest, NamesAreWellFormedAndUnique) {
  const std::regex form("[A-Z][A-Z0-9_]+[A-Z0-9]");
  std::set<std::string_view> seen;
  for (const ReasonInfo& info : AllReasons()) {
    EXPECT_TRUE(std::regex_match(std::string(info.name), form)) << info.name;
    EXPECT_LE(info.name.size(), 63u) << info.name;
    EXPECT_TRUE(seen.insert(info.name).second) << info.name;
    EXPECT_FALSE(info.meaning.empty() || info.action.empty()) << info.name;
    EXPECT_NE(info.code, absl::StatusCode::kOk) << info.name;
    EXPECT_EQ(FindReason(info.name), info.reason);
    EXPECT_EQ(&InfoOf(info.reason), &info);
  }
  EXPECT_EQ(FindReason("NO_SUCH_REASON"), std::nullopt);
}

TEST(ReasonTableTest, EveryRowIsDocumented) {
  std::string page = ErrorsPage();
  size_t rows = 0;
  for (const ReasonInfo& info : AllReasons()) {
    std::string row = "| `" + std::string(info.name) + "` | " +
                      absl::StatusCodeToString(info.code) + " | " + std::string(info.meaning) +
                      " | " + std::string(info.action) + " |\n";
    EXPECT_NE(page.find(row), std::string::npos) << "docs/api/errors.md lacks: " << row;
  }
  for (size_t at = page.find("\n| `"); at != std::string::npos; at = page.find("\n| `", at + 1)) {
    ++rows;
  }
  EXPECT_EQ(rows, AllReasons().size()) << "docs/api/errors.md has rows the table lacks";
}

TEST(MakeErrorTest, CarriesReasonAndMetadata) {
  absl::Status status = MakeError(Reason::kJobNotFound, "no job x", {{"job", "x"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "no job x");
  EXPECT_EQ(ReasonOf(status), "JOB_NOT_FOUND");
  EXPECT_TRUE(HasReason(status, Reason::kJobNotFound));
  EXPECT_EQ(MetadataOf(status, "job"), "x");
  EXPECT_EQ(MetadataOf(status, "other"), "");
  EXPECT_EQ(RetryAfterOf(status), std::nullopt);
}

TEST(MakeErrorTest, PlainStatusHasNoReason) {
  EXPECT_EQ(ReasonOf(absl::OkStatus()), "");
  EXPECT_EQ(ReasonOf(absl::InternalError("x")), "");
}

TEST(MakeErrorTest, StoreUnavailableSaysWhenToRetry) {
  EXPECT_EQ(RetryAfterOf(MakeError(Reason::kStoreUnavailable, "x")), Duration(seconds(1)));
  ErrorDetails details{.retry_after = seconds(7)};
  EXPECT_EQ(RetryAfterOf(MakeDetailedError(Reason::kStoreUnavailable, "x", details)),
            Duration(seconds(7)));
}

TEST(MakeNamedErrorTest, KeepsUnknownNamesAndRefusesMalformedOnes) {
  EXPECT_EQ(MakeNamedError("INVALID_CHECKPOINT", "x").code(), absl::StatusCode::kInvalidArgument);
  absl::Status unknown = MakeNamedError("SOMETHING_NEW", "x", {{"k", "v"}});
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ReasonOf(unknown), "SOMETHING_NEW");
  EXPECT_EQ(MetadataOf(unknown, "k"), "v");
  for (const char* name : {"", "A", "lower", "_X_", "WITH SPACE", "TRAILING_"}) {
    EXPECT_EQ(ReasonOf(MakeNamedError(name, "x")), "INTERNAL") << name;
  }
}

TEST(RpcStatusTest, RoundTripKeepsEveryDetail) {
  absl::Status status = MakeDetailedError(
      Reason::kInvalidSpec, "bits must be 2, 3, 4 or 8, got 5",
      {.metadata = {{"bits", "5"}},
       .field_violations = {{"spec.method.awq.grid.bits", "must be 2, 3, 4 or 8"}},
       .preconditions = {{"MISSING", "abc", "upload it"}},
       .retry_after = seconds(2)});
  google::rpc::Status proto = ToRpcStatus(status);
  EXPECT_EQ(proto.code(), 3);
  EXPECT_EQ(proto.details_size(), 4);
  google::rpc::BadRequest bad;
  for (const auto& detail : proto.details()) detail.UnpackTo(&bad);
  ASSERT_EQ(bad.field_violations_size(), 1);
  EXPECT_EQ(bad.field_violations(0).field(), "spec.method.awq.grid.bits");
  absl::Status again = FromRpcStatus(proto);
  EXPECT_EQ(again, status);
  EXPECT_EQ(ReasonOf(again), "INVALID_SPEC");
  EXPECT_EQ(ToRpcStatus(again).SerializeAsString(), proto.SerializeAsString());
}

TEST(RpcStatusTest, AReasonHasRoomWhateverACallerWrote) {
  const std::string text(65536, 'x');
  const absl::Status status =
      MakeDetailedError(Reason::kEtagMismatch, "wanted another etag, got " + text,
                        {.metadata = {{"etag", text}, {"name", text}, {"short", "y"}},
                         .field_violations = {{"etag", text}}});
  EXPECT_EQ(MetadataOf(status, "etag"), std::string(1000, 'x') + "...");
  EXPECT_EQ(MetadataOf(status, "short"), "y");
  google::rpc::ErrorInfo info;
  const google::rpc::Status proto = ToRpcStatus(status);
  ASSERT_TRUE(proto.details(0).UnpackTo(&info)) << "the others are left out before it";
  EXPECT_LT(info.ByteSizeLong(), 4000u);
}

TEST(RpcStatusTest, Ok) { EXPECT_TRUE(FromRpcStatus(ToRpcStatus(absl::OkStatus())).ok()); }

}  // namespace
}  // namespace quantry
