// Names, numbers, paths, filters, errors: the small pure parts.
#include <gmock/gmock.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <limits>

#include "client/cli/backoff.h"
#include "client/cli/errors.h"
#include "client/cli/exit_codes.h"
#include "client/cli/format.h"
#include "client/cli/hints.h"
#include "client/cli/interrupt.h"
#include "client/cli/job_filter.h"
#include "client/cli/job_text.h"
#include "client/cli/names.h"
#include "client/cli/safe_path.h"
#include "client/cli/testing/run.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

TEST(ResolveJob, ShortIdsAndFullNames) {
  EXPECT_EQ(*ResolveJob("default", "my-job"), "tenants/default/quantizationJobs/my-job");
  EXPECT_EQ(*ResolveJob("default", "tenants/a/quantizationJobs/my-job"),
            "tenants/a/quantizationJobs/my-job");
  for (const char* bad : {"", "My-Job", "a/b", "tenants/a/artifacts/my-job", "../my-job"}) {
    EXPECT_FALSE(ResolveJob("default", bad).ok()) << bad;
  }
  EXPECT_FALSE(ResolveJob("No Tenant", "my-job").ok());
}

TEST(ResolveArtifact, ByUidOrName) {
  const std::string uid = "0a1b2c3d-1111-4222-8333-444455556666";
  EXPECT_EQ(ResolveArtifact("default", uid), "tenants/default/artifacts/" + uid);
  EXPECT_EQ(ResolveArtifact("default", "tenants/a/artifacts/" + uid), "tenants/a/artifacts/" + uid);
  EXPECT_EQ(ResolveArtifact("default", "my-job"), "");
}

TEST(Format, Numbers) {
  EXPECT_EQ(Bytes(0), "0 B");
  EXPECT_EQ(Bytes(999), "999 B");
  EXPECT_EQ(Bytes(1000), "1.0 kB");
  EXPECT_EQ(Bytes(999'960), "1.0 MB");
  EXPECT_EQ(Bytes(13'500'000'000), "13.5 GB");
  EXPECT_EQ(Seconds(0.04), "0.0 s");
  EXPECT_EQ(Seconds(12.3), "12 s");
  EXPECT_EQ(Seconds(184), "3m 04s");
  EXPECT_EQ(Seconds(7500), "2h 05m");
  EXPECT_EQ(Seconds(-1), "?");
  EXPECT_EQ(Seconds(std::numeric_limits<double>::infinity()), "?");
  EXPECT_EQ(Percent(0.999), " 99%");
  EXPECT_EQ(Number(4.23184), "4.2318");
  EXPECT_EQ(Number(std::numeric_limits<double>::quiet_NaN()), "n/a");
}

TEST(Format, TimesOfAHostileServerDoNotCrash) {
  google::protobuf::Timestamp time;
  EXPECT_EQ(Rfc3339(time), "");
  time.set_seconds(1'700'000'000);
  EXPECT_EQ(Rfc3339(time), "2023-11-14T22:13:20Z");
  EXPECT_EQ(Age(time, std::chrono::system_clock::from_time_t(1'700'000'090)), "90 s");
  EXPECT_EQ(Ago(time, std::chrono::system_clock::from_time_t(1'700'000'090)), "90 s ago");
  EXPECT_EQ(Ago(time, std::chrono::system_clock::from_time_t(1'700'000'000)), "now");
  time.set_seconds(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(Rfc3339(time), "invalid");
}

TEST(Format, TablesAlign) {
  EXPECT_EQ(Table({{"ID", "STATE"}, {"a-long-id", "x"}}), "ID         STATE\na-long-id  x\n");
  EXPECT_EQ(Fields({{"a", "1"}, {"long", "2"}}), "  a     1\n  long  2\n");
  const std::string word(50, 'x');
  EXPECT_EQ(Fields({{"a", word + " " + word + " " + word}}),
            "  a  " + word + "\n     " + word + "\n     " + word + "\n");
  EXPECT_EQ(Fields({{"a", word + word}}), "  a  " + word + word + "\n");
  EXPECT_EQ(Fields({{"a", word + word + " b"}}), "  a  " + word + word + "\n     b\n");
}

TEST(QueueText, SaysForHowLongItIsPaused) {
  v1::QueueStats stats;
  stats.mutable_pause()->mutable_start_time()->set_seconds(1'700'000'000);
  stats.mutable_pause()->set_reason("tea");
  const auto text = [&stats](int64_t seconds) {
    return QueueText(stats, std::chrono::system_clock::from_time_t(1'700'000'000 + seconds));
  };
  EXPECT_THAT(text(0), HasSubstr("  just now: tea; quantry queue resume\n"));
  EXPECT_THAT(text(12), HasSubstr("  for 12 s: tea; quantry queue resume\n"));
}

TEST(EventText, ABlockWithAndWithoutMeasuredLosses) {
  v1::JobEvent event;
  event.mutable_block_done()->set_index(1);
  event.mutable_block_done()->set_seconds(2);
  EXPECT_THAT(EventText(event), EndsWith("  block 1 done in 2.0 s"));
  event.mutable_block_done()->set_loss_rtn(0.02);
  event.mutable_block_done()->set_loss_final(0.01);
  EXPECT_THAT(EventText(event), EndsWith("  block 1 done in 2.0 s, loss 0.02 -> 0.01"));
}

// A grid that only a recipe fixes has no bits of its own to tell.
TEST(JobText, ARecipeStandsForTheBitsItFixes) {
  v1::QuantizationJob job;
  job.set_name("tenants/t/quantizationJobs/my-job");
  v1::TesseraqMethod& method = *job.mutable_spec()->mutable_method()->mutable_tesseraq();
  const auto expect = [&](const std::string& wanted) {
    const WallTime now;
    EXPECT_THAT(QuoteText({}, job.spec()), HasSubstr("  " + wanted + "\n"));
    EXPECT_THAT(JobText(job, now), HasSubstr("  " + wanted + "\n"));
    EXPECT_THAT(JobTable({job}, now), HasSubstr("  " + wanted + "\n"));
  };
  expect("tesseraq");
  method.set_recipe("tesseraq-w2g64");
  expect("tesseraq-w2g64");
  method.mutable_grid()->set_symmetric(true);
  expect("tesseraq-w2g64 symmetric");
  method.mutable_grid()->set_group_size(64);
  method.mutable_grid()->set_bits(3);
  expect("tesseraq-w2g64 3-bit g64 symmetric");
  job.mutable_spec()->mutable_preprocessing();
  expect("tesseraq-w2g64 3-bit g64 symmetric +lora");
  job.mutable_spec()->mutable_method()->mutable_ptq161()->set_recipe("ptq161-plus");
  expect("ptq161-plus +lora");
  job.mutable_spec()->mutable_method()->mutable_restore()->mutable_first_pass()->set_recipe(
      "ptq161-plus");
  expect("restore ptq161-plus +lora");
}

TEST(JoinBelow, OnlyPlainRelativeNames) {
  EXPECT_EQ(*JoinBelow("out", "a/b.json"), "out/a/b.json");
  EXPECT_EQ(*JoinBelow("out/", "a"), "out/a");
  for (const std::string& bad :
       {std::string(""), std::string("/a"), std::string("a/"), std::string("a//b"),
        std::string("."), std::string("a/./b"), std::string(".."), std::string("a/../b"),
        std::string("a\\b"), std::string("a\nb"), std::string("a\0b", 3), std::string(300, 'a'),
        std::string(1025, 'a')}) {
    const auto joined = JoinBelow("out", bad);
    EXPECT_EQ(joined.status().code(), absl::StatusCode::kDataLoss) << bad;
  }
}

TEST(FilterText, Terms) {
  EXPECT_EQ(FilterText({}), "");
  EXPECT_EQ(FilterText({"running", "awq", {{"a", "1"}, {"b", "x\"\\"}}}),
            "state = RUNNING AND method = awq AND labels.a = \"1\" AND labels.b = \"x\\\"\\\\\"");
}

TEST(ExitCodes, FollowTheTable) {
  const std::pair<absl::StatusCode, int> kCases[] = {
      {absl::StatusCode::kOk, 0},
      {absl::StatusCode::kInvalidArgument, 2},
      {absl::StatusCode::kFailedPrecondition, 2},
      {absl::StatusCode::kAlreadyExists, 2},
      {absl::StatusCode::kAborted, 2},
      {absl::StatusCode::kNotFound, 4},
      {absl::StatusCode::kPermissionDenied, 5},
      {absl::StatusCode::kUnauthenticated, 5},
      {absl::StatusCode::kResourceExhausted, 6},
      {absl::StatusCode::kUnavailable, 7},
      {absl::StatusCode::kDeadlineExceeded, 7},
      {absl::StatusCode::kDataLoss, 1},
      {absl::StatusCode::kInternal, 1},
      {absl::StatusCode::kCancelled, 130},
  };
  for (const auto& [code, wanted] : kCases) {
    EXPECT_EQ(static_cast<int>(ExitCodeFor(absl::Status(code, "m"))), wanted)
        << absl::StatusCodeToString(code);
  }
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::JOB_STATE_SUCCEEDED)), 0);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::JOB_STATE_FAILED)), 1);
  EXPECT_EQ(static_cast<int>(ExitCodeFor(v1::JOB_STATE_CANCELLED)), 3);
}

TEST(Errors, DetailsComeOutAndTerminalsStayWhole) {
  google::rpc::Status rpc;
  rpc.set_code(grpc::INVALID_ARGUMENT);
  rpc.set_message("bad\x1b[31m spec");
  google::rpc::ErrorInfo info;
  info.set_reason("INVALID_SPEC");
  (*info.mutable_metadata())["bits"] = "5";
  rpc.add_details()->PackFrom(info);
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field("spec.bits");
  violation->set_description("wanted 2, 3, 4, 8");
  rpc.add_details()->PackFrom(bad);
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(3);
  rpc.add_details()->PackFrom(retry);
  const ErrorReport report = Describe(
      FromGrpc(grpc::Status(grpc::INVALID_ARGUMENT, rpc.message(), rpc.SerializeAsString())));
  EXPECT_EQ(report.reason, "INVALID_SPEC");
  EXPECT_EQ(report.metadata.at("bits"), "5");
  EXPECT_EQ(report.retry_after_s, 3.0);
  EXPECT_EQ(ErrorText(report),
            "quantry: bad [31m spec\n  reason: INVALID_SPEC\n"
            "  field:  spec.bits: wanted 2, 3, 4, 8\n  retry:  after 3.0 s\n  next:   " +
                HintFor("INVALID_SPEC", absl::StatusCode::kInvalidArgument) + "\n");
}

TEST(Errors, AFieldLineDoesNotRepeatTheMessage) {
  struct Case {
    const char* name;
    const char* message;
    std::vector<ErrorReport::Violation> violations;
    const char* wanted;  // lines after the first
  };
  const Case cases[] = {
      {"field and description told", "spec.bits: got 5", {{"spec.bits", "got 5"}}, ""},
      {"description told", "bits: got 5", {{"spec.bits", "bits: got 5"}}, "  field:  spec.bits\n"},
      {"each told, of one field",
       "it could not run: too wide; too deep",
       {{"spec", "too wide"}, {"spec", "too deep"}},
       "  field:  spec\n"},
      {"the second not told",
       "spec.bits: got 5 (and 1 more; see the field violations)",
       {{"spec.bits", "got 5"}, {"spec.seed", "got -1"}},
       "  field:  spec.seed: got -1\n"},
      {"told by chance",
       "3 blobs are missing, the first is ab (a)",
       {{"MISSING ab", "a"}},
       "  field:  MISSING ab: a\n"},
  };
  for (const Case& c : cases) {
    ErrorReport report;
    report.message = c.message;
    report.violations = c.violations;
    EXPECT_EQ(ErrorText(report), "quantry: " + report.message + "\n" + c.wanted) << c.name;
  }
}

TEST(Errors, DetailsThatAreGarbageCostOnlyThemselves) {
  const ErrorReport report =
      Describe(FromGrpc(grpc::Status(grpc::NOT_FOUND, "no job", "\xff\xff garbage")));
  EXPECT_EQ(report.code, "NOT_FOUND");
  EXPECT_EQ(report.message, "no job");
}

TEST(Hints, EveryReasonOfTheTableSaysWhatToDo) {
  for (const ReasonInfo& row : AllReasons()) {
    EXPECT_NE(HintFor(row.name, row.code), "") << row.name;
  }
  EXPECT_EQ(HintFor("NOT_IN_ANY_TABLE", absl::StatusCode::kInternal), "");
}

// A server or a job that answered with a reason is no server that is away.
TEST(Hints, OnlySilenceAsksWhetherQuantrydRuns) {
  EXPECT_THAT(HintFor("", absl::StatusCode::kUnavailable), HasSubstr("is quantryd running"));
  for (const ReasonInfo& row : AllReasons()) {
    EXPECT_THAT(HintFor(row.name, row.code), Not(HasSubstr("is quantryd running"))) << row.name;
  }
  EXPECT_THAT(HintFor("MAX_RUN_EXCEEDED", absl::StatusCode::kDeadlineExceeded),
              HasSubstr("--max-run"));
  EXPECT_THAT(HintFor("OUT_OF_MEMORY", absl::StatusCode::kResourceExhausted),
              HasSubstr("fewer samples"));
}

TEST(Hints, TheMessageTellsAWrongTenantFromALowRole) {
  const std::string hidden = "nothing named tenants/default for ann, whose tenant is ";
  const struct {
    absl::StatusCode code;
    std::string message;
    std::string wanted;
  } kCases[] = {
      {absl::StatusCode::kNotFound, hidden + "acme", "add --tenant acme (or set QUANTRY_TENANT)"},
      {absl::StatusCode::kPermissionDenied,
       "AdminService/SetQuota: wanted role admin or a higher one, got viewer (ann)",
       "credentials of the role"},
      {absl::StatusCode::kPermissionDenied,
       "AdminService/ListWorkers: wanted a principal of all tenants (tenant *), got ann of tenant "
       "acme",
       "those who run the server"},
  };
  for (const auto& c : kCases) {
    EXPECT_THAT(HintForMessage(c.message, c.code), HasSubstr(c.wanted)) << c.message;
    EXPECT_EQ(HintForMessage(c.message, absl::StatusCode::kInternal), "");
  }
  EXPECT_EQ(HintForMessage("no job x", absl::StatusCode::kNotFound), "");
  EXPECT_EQ(HintForMessage(hidden + "a\x1b[31m", absl::StatusCode::kNotFound), "");
  EXPECT_EQ(HintForMessage("no", absl::StatusCode::kPermissionDenied), "");
}

TEST(Hints, OnlyGrpcsOwnUnimplementedAsksForThePort) {
  EXPECT_THAT(HintFor("", absl::StatusCode::kUnimplemented), HasSubstr("worker port (7071)"));
  EXPECT_THAT(HintFor("UNIMPLEMENTED_RPC", absl::StatusCode::kUnimplemented),
              Not(HasSubstr("7071")));
}

TEST(Backoff, DoublesUpToItsLimitAndJitters) {
  using std::chrono::milliseconds;
  Backoff backoff(milliseconds(100), milliseconds(300));
  EXPECT_EQ(backoff.Next(0), milliseconds(50));
  EXPECT_EQ(backoff.Next(0.5), milliseconds(150));
  EXPECT_EQ(backoff.Next(0.5), milliseconds(225));
  EXPECT_EQ(backoff.Next(0.5), milliseconds(225));
  backoff.Reset();
  EXPECT_EQ(backoff.Next(0), milliseconds(50));
}

TEST(Interrupter, FiresOnceAndEndsSleeps) {
  Interrupter interrupter;
  int calls = 0;
  {
    const Interrupter::Guard guard(&interrupter, [&calls] { ++calls; });
    interrupter.Fire(2);
  }
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(interrupter.fired(), 2);
  interrupter.SleepFor(std::chrono::hours(1));
  const Interrupter::Guard late(&interrupter, [&calls] { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(RunCli, UsageErrorsAreTwoAndPointToHelp) {
  const struct {
    std::vector<std::string> arguments;
    const char* says;
  } kCases[] = {
      {{}, "--help"},
      {{"lst"}, "no command \"lst\""},
      {{"get"}, "`quantry get --help`"},
      {{"get", "a-job", "--flag"}, "no flag --flag\n"},
      {{"submit", "a", "--samples=9", "--bits=2"},
       "no flag --samples; there is --held-out-samples, "},
      {{"list", "a", "b"}, "not expected"},
      {{"list", "--state", "sleeping"}, "queued"},
      {{"submit"}, "MODEL_DIR"},
      {{"submit", "a", "--model-path", "/b", "--method", "rtn"}, "only one"},
      {{"submit", "--model-path", "/b"}, "--method"},
      {{"submit", "--model-path", "/b", "--method", "rtn", "--id", "A"}, "INVALID_NAME"},
      {{"submit", "--model-path", "/b", "--method", "rtn", "--label", "x"}, "KEY=VALUE"},
      {{"update", "a-job"}, "--priority"},
      {{"get", "No Name"}, "INVALID_NAME"},
      {{"workers", "drain"}, "WORKER"},
      {{"workers", "rest"}, "one of list, drain"},
      {{"completion", "tcsh"}, "one of bash"},
      {{"list", "--quiet=maybe"}, "\"--quiet=maybe\""},
      {{"submit", "--model-path", "/b", "--symmetric=99999999999999999999"}, "true, false"},
      {{"list", "--timeout", "0"},
       "--timeout: wanted seconds above 0, at most 1000000000, got \"0\"\n"},
      {{"list", "--timeout", "9999999999"},
       "--timeout: wanted seconds above 0, at most 1000000000"},
      {{"watch", "a-job", "--wait-timeout", "9999999999"},
       "--wait-timeout: wanted seconds above 0, at most 1000000000"},
      {{"retry", "a-job", "--wait-timeout", "9999999999"}, "--wait-timeout: wanted seconds"},
      {{"submit", "a", "--wait-timeout", "9999999999"}, "--wait-timeout: wanted seconds"},
      {{"list", "--timeout", "inf"}, "seconds above 0"},
      {{"submit", "a", "--calibration-samples", "0"}, "wanted a number above 0, got \"0\"\n"},
      {{"list", "--limit", "-1"}, "--limit: wanted 0 or more, got \"-1\"\n"},
      {{"events", "a-job", "--after", "x"}, "0 or more"},
      {{"list", "--limit", "010"}, "without leading zeros, got \"010\"\n"},
      {{"update", "a-job", "--priority", "-010"}, "without leading zeros, got \"-010\"\n"},
      {{"submit", "--model-path", "/b", "--method", "rtn", "--seed", "0x10"},
       "--seed: wanted a decimal number without leading zeros, got \"0x10\"\n"},
      {{"submit", "--model-path", "/b", "--method", "rtn", "--group-size", "0"}, "--group-size"},
      {{"submit", "--model-path", "/b", "--method", "rtn", "--request-id", "x"}, "a UUID"},
      {{"list", "--server", "http://127.0.0.1:7070"}, "HOST:PORT"},
      {{"list", "--server", "far"},
       "--server: wanted HOST:PORT with a port of 1 to 65535, got \"far\""},
      {{"login", "far:99999", "--no-check"}, "ENDPOINT: wanted HOST:PORT"},
      {{"submit", "a", "--max-run", "1h"},
       "--max-run: wanted a number of seconds, such as 3600 for an hour, got \"1h\"\n"},
      {{"submit", "a", "--max-pending", "-1"},
       "--max-pending: wanted 0 seconds or more, at most 1000000000, got \"-1\"\n"},
      {{"watch", "a-job", "--wait-timeout", "5m"}, "--wait-timeout: wanted a number of seconds"},
      {{"gc", "--older-than", "7d"}, "--older-than: wanted hours from 0.017"},
      {{"submit", "a", "--bits", "four"}, "--bits: wanted a whole number, got \"four\"\n"},
      {{"submit", "a", "--threads", "4.5"}, "--threads: wanted a whole number, got \"4.5\"\n"},
      {{"submit", "a", "--bits", "99999999999"},
       "--bits: wanted a smaller number, got \"99999999999\"\n"},
  };
  for (const auto& c : kCases) {
    const CliRun run = RunForTest(c.arguments);
    EXPECT_EQ(run.code, 2) << c.says << run.err;
    EXPECT_THAT(run.err, HasSubstr(c.says));
    EXPECT_EQ(run.out, "");
  }
}

TEST(RunCli, UsageErrorsAsJson) {
  const CliRun run = RunForTest({"get", "--output", "json"});
  EXPECT_EQ(run.code, 2);
  EXPECT_EQ(run.json()["error"]["code"], "INVALID_ARGUMENT");
}

TEST(RunCli, HelpIsOnStdoutWithExamples) {
  for (const char* command :
       {"submit", "quote", "get", "list", "watch", "events", "cancel", "delete", "update", "pull",
        "export", "methods", "server-info", "workers", "queue", "completion", "version"}) {
    const CliRun run = RunForTest({command, "--help"});
    EXPECT_EQ(run.code, 0) << command;
    EXPECT_THAT(run.out, HasSubstr("Example")) << command;
    EXPECT_EQ(run.err, "") << command;
  }
}

}  // namespace
}  // namespace quantry::cli
