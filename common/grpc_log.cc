#include "common/grpc_log.h"

#include <grpc/support/log.h>

#include <string_view>

#include "common/log.h"

namespace quantry {
namespace {

void WriteEntry(gpr_log_func_args* args) {
  std::string_view file = args->file == nullptr ? "" : args->file;
  file.remove_prefix(file.rfind('/') + 1);  // npos + 1 = 0
  const auto write = args->severity == GPR_LOG_SEVERITY_ERROR ? log::Warning : log::Debug;
  write("gRPC", {{"says", args->message}, {"file", file}, {"line", args->line}});
}

}  // namespace

void LogForGrpc() { gpr_set_log_function(WriteEntry); }

}  // namespace quantry
