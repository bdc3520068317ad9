#include "common/engine_child.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"

namespace quantry {
namespace {

// Nothing that holds credentials is named here.
constexpr std::string_view kKept[] = {
    "PATH",         "HOME",          "LANG",      "LC_*",    "TZ",
    "TMPDIR",       "OMP_*",         "MKL_*",     "KMP_*",   "CUDA_*",
    "NVIDIA_*",     "MALLOC_*",      "PYTORCH_*", "TORCH_*", "LD_LIBRARY_PATH",
    "ASAN_OPTIONS", "UBSAN_OPTIONS",
};

std::vector<std::string> EngineEnvironment(bool confined) {
  std::vector<std::string> environment = CleanEnvironment(kKept);
  // Also what the engine would start itself again for; see worker/engine/main.cc.
  const bool waits = std::any_of(environment.begin(), environment.end(), [](const auto& entry) {
    return absl::StartsWith(entry, "OMP_WAIT_POLICY=");
  });
  if (!waits) environment.emplace_back("OMP_WAIT_POLICY=PASSIVE");
  // Makes the engine give up execve once it runs.
  if (confined) environment.emplace_back("QUANTRY_ENGINE_SEALED=1");
  return environment;
}

// The program by its real name: rules for files go by it.
std::string RealPath(const std::string& program) {
  const std::string found = FindProgram(program);
  std::error_code error;
  const auto path = std::filesystem::canonical(found, error);
  return error ? found : path.native();
}

}  // namespace

EngineAccess InputsOf(const v1::EngineJob& job, std::vector<std::string> within) {
  EngineAccess access;
  access.within = std::move(within);
  for (const std::string& path :
       {job.model_dir(), job.calibration().text().path(), job.evaluation().text().path(),
        job.preprocessing().text().path()}) {
    if (!path.empty()) access.read.push_back(path);
  }
  access.gpu = job.device() != "cpu";
  return access;
}

absl::StatusOr<EngineConfinement> MakeEngineConfinement(bool enabled, const std::string& user,
                                                        std::int64_t max_file_bytes) {
  EngineConfinement confinement{.enabled = enabled,
                                .account = std::nullopt,
                                .max_file_bytes = static_cast<std::uint64_t>(max_file_bytes)};
  if (user.empty()) return confinement;
  if (!enabled) {
    return MakeError(Reason::kInvalidConfig,
                     "--engine-user needs --engine-confinement; leave one of them out");
  }
  if (geteuid() != 0) {
    return MakeError(Reason::kInvalidConfig,
                     "--engine-user: only root can start engines as another account; leave it "
                     "out, or start this program as root");
  }
  auto account = FindIdentity(user);
  if (!account.ok()) {
    return MakeError(Reason::kInvalidConfig,
                     absl::StrCat("--engine-user: ", std::string(account.status().message())));
  }
  if (account->uid != 0) confinement.account = *std::move(account);
  return confinement;
}

absl::Status CheckEngineReaches(const EngineConfinement& confinement, const std::string& folder) {
  if (!confinement.account) return absl::OkStatus();
  const std::string closed = ClosedFolder(*confinement.account, folder);
  if (closed.empty()) return absl::OkStatus();
  return MakeError(Reason::kInvalidConfig,
                   absl::StrCat("--engine-user: ", confinement.account->name, " cannot reach ",
                                folder, " because it may not enter ", closed,
                                "; chmod o+x that folder, or name another place"));
}

absl::StatusOr<ChildProcess> SpawnEngine(ChildOptions options, const EngineConfinement& confinement,
                                         const EngineAccess& access) {
  options.environment = EngineEnvironment(confinement.enabled);
  if (!confinement.enabled) {
    options.limits.emplace_back(RLIMIT_CORE, 0);
    return ChildProcess::Spawn(options);
  }
  options.argv[0] = RealPath(options.argv[0]);
  auto sandbox = Sandbox::Prepare({.program = options.argv[0],
                                   .read = access.read,
                                   .within = access.within,
                                   .write = access.write,
                                   .gpu = access.gpu,
                                   .identity = confinement.account,
                                   .max_file_bytes = confinement.max_file_bytes});
  if (!sandbox.ok()) {
    return absl::Status(
        sandbox.status().code(),
        absl::StrCat("cannot confine the engine: ", std::string(sandbox.status().message())));
  }
  options.sandbox = &*sandbox;
  return ChildProcess::Spawn(options);
}

std::string DescribeConfinement(const EngineConfinement& confinement, const ChildProcess& child) {
  if (!confinement.enabled) return "off";
  std::string text = child.sandbox_report().Text();
  if (confinement.account) absl::StrAppend(&text, " ", confinement.account->name);
  return text;
}

}  // namespace quantry
