#include "client/cli/hints.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <initializer_list>
#include <optional>

#include "client/cli/names.h"
#include "client/cli/text.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

struct ReasonHint {
  std::string_view reason;
  std::string_view hint;
};

constexpr std::string_view kTryQuote =
    "fix the fields named above, then check with `quantry quote ...` (same flags as submit)";
constexpr std::string_view kFixCheckpoint =
    "repair or download the checkpoint again; `quantry quote MODEL_DIR ...` checks it without a "
    "job";

// One row a reason of the table in docs/api/errors.md that a user can act on.
constexpr std::array kReasonHints = {
    ReasonHint{"JOB_NOT_FOUND", "`quantry list` shows the jobs of this tenant (--tenant picks it)"},
    ReasonHint{"ARTIFACT_NOT_FOUND",
               "`quantry get JOB` shows whether the job has an artifact; deleted jobs keep none"},
    ReasonHint{"WORKER_NOT_FOUND", "`quantry workers list` shows the workers"},
    ReasonHint{"JOB_ID_TAKEN", "choose another --id, or look at that job with `quantry get ID`"},
    ReasonHint{"REQUEST_ID_REUSED",
               "the same --request-id was used with other flags: leave it out for a new job"},
    ReasonHint{"INVALID_SPEC", kTryQuote},
    ReasonHint{"INVALID_CHECKPOINT", kFixCheckpoint},
    ReasonHint{"UNSUPPORTED_ARCHITECTURE", "`quantry server-info` lists the model types it knows"},
    ReasonHint{"INVALID_FILTER", "see `quantry list --help` for what can be filtered"},
    ReasonHint{"INVALID_PAGE_TOKEN", "run the command again from the start"},
    ReasonHint{"ETAG_MISMATCH", "somebody changed it meanwhile: look again, then repeat"},
    ReasonHint{"JOB_ALREADY_ENDED", "nothing to cancel; `quantry get JOB` shows how it ended"},
    ReasonHint{"JOB_NOT_ENDED", "`quantry cancel JOB` first, then delete it"},
    ReasonHint{"SOURCE_FORBIDDEN",
               "the server reads only below its local roots (`quantry server-info` lists them); "
               "pass the folder as MODEL_DIR to upload it instead"},
    ReasonHint{"SOURCE_MISSING", "run the same submit again: it uploads what the server lacks"},
    ReasonHint{"RESOURCE_LIMIT", "repeat the command after the time above"},
    ReasonHint{"QUOTA_QUEUED",
               "wait until queued jobs have run, or cancel some (`quantry list --state queued`)"},
    ReasonHint{
        "QUOTA_STORED_BYTES",
        "`quantry delete JOB` frees an artifact; the operator raises the limit with `quantry "
        "quota`, uploads no job names go with `quantry gc`"},
    ReasonHint{"QUOTA_SUBMIT_RATE", "repeat the command after the time above"},
    ReasonHint{"QUOTA_WATCHES", "end another `quantry watch` of this tenant, or use `quantry get`"},
    ReasonHint{"STORE_UNAVAILABLE",
               "the server's store is down: repeat the command when it is back"},
    ReasonHint{"STORAGE_ERROR",
               "repeat the command; if it fails again, the server's operator finds why in its log"},
    ReasonHint{"EVENTS_COMPACTED", "older events are gone; run the command without --after"},
    ReasonHint{"BLOB_MISMATCH", "the file changed while it was sent: run the same command again"},
    ReasonHint{"ARTIFACT_CORRUPT",
               "run the same command again; if it repeats, a stored file is damaged: tell the "
               "operator"},
    ReasonHint{
        "POISON_JOB",
        "the job broke several workers: `quantry events JOB` shows how; the operator has the logs"},
    ReasonHint{"MAX_RUN_EXCEEDED",
               "submit it again with a larger --max-run, or without; fewer steps or samples run "
               "shorter"},
    ReasonHint{"MAX_PENDING_EXCEEDED",
               "`quantry workers` and `quantry queue` show what it waited for; submit it again "
               "with a larger --max-pending, or without"},
    ReasonHint{"NO_PROGRESS", "the engine stood still: `quantry events JOB` shows where"},
    ReasonHint{"WORKER_LOST", "`quantry workers list` shows which workers are alive"},
    ReasonHint{"LEASE_LOST", "the attempt was taken over by another worker; nothing to do"},
    ReasonHint{
        "QUALITY_GATE_FAILED",
        "the artifact is kept: `quantry pull JOB DIR`; try more bits, a smaller --group-size "
        "or more calibration samples"},
};

// Without a reason gRPC itself says so: the port has not the service, or not this call.
constexpr std::string_view kWorkerPort =
    "is that quantryd's worker port (7071)? commands go to its tenant port (7070); an older "
    "quantryd may not offer this one";

// Somebody answered: what a code says about servers that do not is wrong here, and
// the reason's own row knows better.
bool RowBeatsCode(absl::StatusCode code) {
  return code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kResourceExhausted;
}

std::string_view HintForCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnavailable:
      return "is quantryd running there? start one with `quantryd --data-dir=DIR`, or name "
             "another with --server HOST:PORT or QUANTRY_SERVER";
    case absl::StatusCode::kDeadlineExceeded:
      return "the server did not answer in time: try again, or raise --timeout";
    case absl::StatusCode::kUnauthenticated:
      return "ask the operator for access to this tenant";
    case absl::StatusCode::kPermissionDenied:
      return "ask the operator for credentials that may do this";
    case absl::StatusCode::kResourceExhausted:
      return "wait, then repeat the command";
    case absl::StatusCode::kUnimplemented:
      return "this server does not offer that; `quantry server-info` shows its version";
    default:
      return "";
  }
}

struct CauseHint {
  std::string_view cause;
  std::string_view hint;
};

constexpr std::array kCauseHints = {
    CauseHint{"missing",
              "name your token with --token-file, or your certificate with --client-cert and "
              "--client-key; `quantry login HOST:PORT ...` remembers them"},
    CauseHint{"malformed", "the first line of --token-file is to be the token and nothing else"},
    CauseHint{"unknown",
              "is it the token for this server? an operator makes another with `quantryd token "
              "create`"},
    CauseHint{"expired",
              "get a new token or certificate from the operator and put it in the same file"},
    CauseHint{"changed", "run the command again"},
    CauseHint{"certificate",
              "the operator decides who a certificate is: by its URI name spiffe://DOMAIN/..., or "
              "a line with certificate_uri in --principals-file"},
};

bool Contains(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [text](std::string_view word) {
    return text.find(word) != std::string_view::npos;
  });
}

// What follows the last `words` of the text; "" without them.
std::string_view After(std::string_view text, std::string_view words) {
  const size_t at = text.rfind(words);
  return at == std::string_view::npos ? std::string_view() : text.substr(at + words.size());
}

// "nothing named tenants/default for ann, whose tenant is acme".
std::string TenantHint(std::string_view message) {
  const std::string_view tenant = After(message, ", whose tenant is ");
  if (!ResolveTenant(tenant).ok()) return "";
  return Cat("your credentials are for tenant ", tenant, ": add --tenant ", tenant,
             " (or set QUANTRY_TENANT)");
}

}  // namespace

std::string HintForMessage(std::string_view message, absl::StatusCode code) {
  if (code == absl::StatusCode::kNotFound) return TenantHint(message);
  if (code != absl::StatusCode::kPermissionDenied) return "";
  if (Contains(message, {": wanted role "})) {
    return "your role may not do this, whatever the tenant: ask the operator for credentials of "
           "the role wanted above";
  }
  if (Contains(message, {": wanted a principal of all tenants"})) {
    return "this is for those who run the server: ask the operator";
  }
  return "";
}

std::string HintForCause(std::string_view cause) {
  for (const CauseHint& row : kCauseHints) {
    if (row.cause == cause) return std::string(row.hint);
  }
  return "";
}

std::string ConnectionHint(std::string_view message, bool tls, bool certificate) {
  std::string lower(message);
  for (char& c : lower) c = c == ' ' ? '_' : static_cast<char>(std::tolower(c));
  if (tls && Contains(lower, {"wrong_version_number"})) {
    return "the server does not speak TLS: leave --tls-ca out";
  }
  if (tls && Contains(lower, {"certificate", "ssl", "handshake", "peer_name", "hostname"})) {
    return "TLS failed: --tls-ca is to be the CA that signed the server's certificate, and the "
           "server's name one the certificate has; a server that wants client certificates needs "
           "--client-cert and --client-key";
  }
  const bool closed = Contains(lower, {"socket_closed", "connection_reset", "eof"});
  if (tls && !certificate && closed) {
    return "somebody listens there but ended the connection: does the server want your certificate "
           "(--client-cert and --client-key)?";
  }
  if (!tls && (closed || Contains(lower, {"settings_frame"}))) {
    return "somebody listens there but answers no plain gRPC: does the server want TLS "
           "(--tls-ca CA.pem, or --tls-ca system)?";
  }
  return HintFor("", absl::StatusCode::kUnavailable);
}

std::string HintFor(std::string_view reason, absl::StatusCode code) {
  for (const ReasonHint& row : kReasonHints) {
    if (row.reason == reason) return std::string(row.hint);
  }
  if (reason.empty() && code == absl::StatusCode::kUnimplemented) return std::string(kWorkerPort);
  const std::optional<Reason> known = FindReason(reason);
  if (known && RowBeatsCode(code)) return std::string(InfoOf(*known).action);
  if (const std::string_view hint = HintForCode(code); !hint.empty()) return std::string(hint);
  return known ? std::string(InfoOf(*known).action) : "";
}

}  // namespace quantry::cli
