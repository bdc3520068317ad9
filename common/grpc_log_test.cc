#include "common/grpc_log.h"

#include <grpc/support/log.h>

#include <string>

#include "common/log.h"
#include "gtest/gtest.h"

namespace quantry {
namespace {

TEST(GrpcLog, LinesBecomeEntries) {
  ASSERT_TRUE(log::Configure("json", "info").ok());
  LogForGrpc();
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);  // as gRPC itself does when it starts
  testing::internal::CaptureStderr();
  gpr_log("src/core/tls.cc", 854, GPR_LOG_SEVERITY_ERROR, "Invalid \"%s\" key.", "private");
  gpr_log("src/core/tls.cc", 855, GPR_LOG_SEVERITY_INFO, "not asked for");
  const std::string line = testing::internal::GetCapturedStderr();
  gpr_set_log_function(nullptr);
  EXPECT_TRUE(line.starts_with("{\"ts\":")) << line;
  EXPECT_TRUE(line.ends_with(
      "\"level\":\"warning\",\"message\":\"gRPC\",\"says\":\"Invalid \\\"private\\\" "
      "key.\",\"file\":\"tls.cc\",\"line\":854}\n"))
      << line;
}

}  // namespace
}  // namespace quantry
