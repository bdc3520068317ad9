#include "server/auth/token_command.h"

#include <cstdio>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/config_loader.h"
#include "common/digest.h"
#include "common/errors.h"
#include "google/protobuf/util/time_util.h"
#include "server/auth/principal.h"
#include "server/auth/principals_file.h"

namespace quantry::server {
namespace {

using google::protobuf::util::TimeUtil;

constexpr int kMaxDays = 36500;
constexpr char kUsage[] =
    "usage: quantryd token create --principals-file=FILE --principal=NAME --role=ROLE "
    "--tenant=TENANT [--expires-in-days=90]\n"
    "Prints the token once, on stdout; only its sha256 is written to FILE.\n"
    "`quantryd token create --help` explains the flags.\n";

absl::Status Check(const v1::TokenConfig& config) {
  if (config.principals_file().empty()) {
    return MakeError(Reason::kInvalidConfig, "--principals-file: wanted a file, got nothing");
  }
  if (config.expires_in_days() < 0 || config.expires_in_days() > kMaxDays) {
    return MakeError(Reason::kInvalidConfig,
                     absl::StrCat("--expires-in-days: wanted 0 to ", kMaxDays, ", got ",
                                  config.expires_in_days()));
  }
  const auto principal = MakePrincipal(config.principal(), config.role(), config.tenant());
  if (principal.ok()) return absl::OkStatus();
  return MakeError(Reason::kInvalidConfig, absl::StrCat("--principal, --role, --tenant: ",
                                                        std::string(principal.status().message())));
}

}  // namespace

absl::StatusOr<std::string> CreateToken(const v1::TokenConfig& config, Time now) {
  if (absl::Status status = Check(config); !status.ok()) return status;
  const std::string token = NewToken();
  v1::PrincipalEntry entry;
  entry.set_principal(config.principal());
  entry.set_role(config.role());
  entry.set_tenant(config.tenant().empty() ? std::string(kAllTenants) : config.tenant());
  entry.set_token_sha256(Sha256Hex(token));
  const std::int64_t seconds = ToUnixMicros(now) / 1'000'000;
  *entry.mutable_create_time() = TimeUtil::SecondsToTimestamp(seconds);
  if (config.expires_in_days() > 0) {
    *entry.mutable_expire_time() =
        TimeUtil::SecondsToTimestamp(seconds + std::int64_t{config.expires_in_days()} * 86400);
  }
  absl::Status status = AppendPrincipal(config.principals_file(), entry);
  if (!status.ok()) return status;
  return token;
}

int RunTokenCommand(int argc, char** argv) {
  if (argc < 1 || std::string_view(argv[0]) != "create") {
    std::fputs(kUsage, stderr);
    return 2;
  }
  v1::TokenConfig config;
  const auto done = LoadConfigOrExit(
      {"quantryd token create", "makes a token, prints it once, adds its hash to a file"}, argc,
      argv, &config, [&config](google::protobuf::Message*) { return Check(config); });
  if (done) return *done;
  const auto token = CreateToken(config, SystemClock().Now());
  if (!token.ok()) {
    std::fprintf(stderr, "quantryd: %s\n", std::string(token.status().message()).c_str());
    return 1;
  }
  std::printf("%s\n", token->c_str());
  std::fprintf(stderr,
               "quantryd: this token is shown this once; %s has its hash, and a running server "
               "that reads this file takes it within --credentials-reload-s\n",
               config.principals_file().c_str());
  return 0;
}

}  // namespace quantry::server
