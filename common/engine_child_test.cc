#include "common/engine_child.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "common/errors.h"
#include "common/testing/child_output.h"
#include "gtest/gtest.h"

namespace quantry {
namespace {

// What sandbox_probe said to one attempt.
std::string Probe(const std::string& attempt, const EngineConfinement& confinement,
                  std::string* description = nullptr) {
  auto child = SpawnEngine({.argv = {SANDBOX_PROBE, attempt}, .environment = {"IGNORED=1"}},
                           confinement, {});
  if (!child.ok()) return child.status().ToString();
  if (description != nullptr) *description = DescribeConfinement(confinement, *child);
  return OutputOf(*child);
}

TEST(EngineChildTest, NoCredentialsInTheEnvironment) {
  for (const char* name : {"AWS_SECRET_ACCESS_KEY", "QUANTRY_TOKEN", "QUANTRY_ENGINE_TOKEN",
                           "PGPASSWORD", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_AUTH_SOCK"}) {
    setenv(name, "secret", 1);
  }
  setenv("OMP_NUM_THREADS", "1", 1);
  unsetenv("OMP_WAIT_POLICY");
  for (const bool enabled : {true, false}) {
    const std::string names =
        Probe("environment", {.enabled = enabled, .account = {}, .max_file_bytes = 0});
    for (const char* wanted : {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PATH"}) {
      EXPECT_NE(names.find(wanted), std::string::npos) << names;
    }
    for (const char* unwanted : {"AWS", "TOKEN", "PASS", "CREDENTIALS", "SSH", "IGNORED"}) {
      EXPECT_EQ(names.find(unwanted), std::string::npos) << names;
    }
    EXPECT_EQ(names.find("QUANTRY_ENGINE_SEALED") != std::string::npos, enabled);
  }
}

TEST(EngineChildTest, ConfinesUnlessTold) {
  std::string description;
  EXPECT_EQ(Probe("tcp", {}, &description), "tcp ENOSYS\n");
  EXPECT_EQ(description.find("seccomp"), 0u) << description;
  EXPECT_EQ(Probe("tcp", {.enabled = false, .account = {}, .max_file_bytes = 0}, &description),
            "tcp ok\n");
  EXPECT_EQ(description, "off");
}

TEST(EngineChildTest, AMissingEngineIsNamed) {
  const auto child = SpawnEngine({.argv = {"/no/such/engine"}, .environment = {}}, {}, {});
  EXPECT_TRUE(absl::IsNotFound(child.status()));
  EXPECT_NE(child.status().message().find("/no/such/engine"), std::string::npos);
}

TEST(EngineChildTest, InputsOfAJob) {
  v1::EngineJob job;
  job.set_model_dir("/model");
  job.mutable_calibration()->mutable_text()->set_path("/text");
  job.set_output_dir("/output");
  job.set_device("cpu");
  const EngineAccess access = InputsOf(job, {"/models"});
  EXPECT_EQ(access.read, (std::vector<std::string>{"/model", "/text"}));
  EXPECT_EQ(access.within, (std::vector<std::string>{"/models"}));
  EXPECT_TRUE(access.write.empty());
  EXPECT_FALSE(access.gpu);
  job.set_device("auto");
  EXPECT_TRUE(InputsOf(job, {"/models"}).gpu);
}

TEST(EngineChildTest, AccountsAreChecked) {
  EXPECT_FALSE(MakeEngineConfinement(true, "", 0)->account.has_value());
  EXPECT_TRUE(
      HasReason(MakeEngineConfinement(false, "nobody", 0).status(), Reason::kInvalidConfig));
  EXPECT_TRUE(HasReason(MakeEngineConfinement(true, "no-such-account", 0).status(),
                        Reason::kInvalidConfig));
  if (geteuid() != 0) return;
  EXPECT_FALSE(MakeEngineConfinement(true, "root", 0)->account.has_value());
  const auto confinement = MakeEngineConfinement(true, "nobody", 0);
  ASSERT_TRUE(confinement.ok()) << confinement.status();
  EXPECT_TRUE(CheckEngineReaches(*confinement, "/tmp").ok());
  char closed[] = "/tmp/quantry-closed-XXXXXX";  // made with mode 0700
  ASSERT_NE(mkdtemp(closed), nullptr);
  EXPECT_TRUE(HasReason(CheckEngineReaches(*confinement, std::string(closed) + "/x"),
                        Reason::kInvalidConfig));
  rmdir(closed);
}

}  // namespace
}  // namespace quantry
