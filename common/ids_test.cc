#include "common/ids.h"

#include <gtest/gtest.h>

#include <set>

#include "common/errors.h"

namespace quantry {
namespace {

constexpr char kUuid[] = "11111111-2222-4333-8444-555555555555";

TEST(UuidTest, NewOnesAreVersion4AndDiffer) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    std::string uuid = NewUuid4();
    EXPECT_TRUE(IsUuid(uuid)) << uuid;
    EXPECT_EQ(uuid[14], '4') << uuid;
    EXPECT_NE(std::string("89ab").find(uuid[19]), std::string::npos) << uuid;
    EXPECT_TRUE(seen.insert(uuid).second) << uuid;
  }
}

TEST(UuidTest, Forms) {
  EXPECT_TRUE(IsUuid(kUuid));
  EXPECT_TRUE(IsUuid("ABCDEF00-2222-4333-8444-555555555555"));
  for (const char* wrong :
       {"", "11111111222243338444555555555555", "11111111-2222-4333-8444-55555555555",
        "11111111-2222-4333-8444-55555555555g", "11111111-2222-4333-84445555-55555555"}) {
    EXPECT_FALSE(IsUuid(wrong)) << wrong;
  }
}

TEST(JobIdTest, Forms) {
  for (const std::string& id :
       {std::string("abcd"), std::string("a-1-"), "a" + std::string(62, '0')}) {
    EXPECT_TRUE(ValidateJobId(id).ok()) << id;
  }
  for (const std::string& id :
       {std::string(""), std::string("abc"), std::string("1abc"), std::string("-abc"),
        std::string("abCd"), std::string("ab_d"), std::string("ab/d"), std::string("abc\0d", 5),
        "a" + std::string(63, '0')}) {
    absl::Status status = ValidateJobId(id);
    EXPECT_TRUE(HasReason(status, Reason::kInvalidName)) << id;
    EXPECT_EQ(MetadataOf(status, "got"), id);
  }
  EXPECT_TRUE(ValidateTenant("t").ok());
  EXPECT_FALSE(ValidateTenant("").ok());
  EXPECT_FALSE(ValidateTenant("..").ok());
}

TEST(ResourceNameTest, RoundTrip) {
  EXPECT_EQ(ParseTenantName(FormatTenantName("acme")).value(), "acme");
  EXPECT_EQ(ParseJobName(FormatJobName("acme", "job-1")).value(), (JobName{"acme", "job-1"}));
  EXPECT_EQ(ParseArtifactName(FormatArtifactName("acme", kUuid)).value(),
            (ArtifactName{"acme", kUuid}));
  std::string hash(64, 'a');
  EXPECT_EQ(ParseBlobName(FormatBlobName("acme", hash)).value(), (BlobName{"acme", hash}));
  EXPECT_EQ(FormatJobName("acme", "job-1"), "tenants/acme/quantizationJobs/job-1");
}

TEST(ResourceNameTest, WrongForms) {
  for (const char* name :
       {"", "tenants", "tenants/", "tenants/acme/quantizationJobs",
        "tenants/acme/quantizationJobs/", "tenants/acme/jobs/job-1",
        "tenants//quantizationJobs/job-1", "/tenants/acme/quantizationJobs/job-1",
        "tenants/acme/quantizationJobs/job-1/", "tenants/acme/quantizationJobs/job-1/x",
        "tenants/../quantizationJobs/job-1", "tenants/acme/quantizationJobs/ab"}) {
    EXPECT_TRUE(HasReason(ParseJobName(name).status(), Reason::kInvalidName)) << name;
  }
  EXPECT_FALSE(ParseTenantName("tenants/a/b").ok());
  EXPECT_FALSE(ParseArtifactName("tenants/acme/artifacts/x").ok());
  EXPECT_FALSE(ParseBlobName("tenants/acme/blobs/../x").ok());
}

TEST(ResourceNameTest, LongNamesAreCutInTheMessage) {
  absl::Status status = ParseJobName(std::string(1 << 20, 'x')).status();
  EXPECT_LT(status.message().size(), 300u);
}

}  // namespace
}  // namespace quantry
