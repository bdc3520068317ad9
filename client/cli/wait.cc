#include "client/cli/wait.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/artifact_file.h"
#include "client/cli/errors.h"
#include "client/cli/format.h"
#include "client/cli/job_text.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/progress.h"
#include "client/cli/pull.h"
#include "client/cli/safe_path.h"
#include "client/cli/text.h"
#include "client/cli/watcher.h"

namespace quantry::cli {
namespace {

void PrintJob(Context& context, const v1::QuantizationJob& job, const WaitOptions& options,
              bool downloaded) {
  Environment& env = context.env;
  if (!context.global.json()) {
    // Left before the server told anything.
    if (job.state() == v1::JOB_STATE_UNSPECIFIED) return;
    env.out << JobText(job, env.now()) << std::flush;
    return;
  }
  Json json = JobJson(job);
  if (!options.request_id.empty()) json["request_id"] = options.request_id;
  if (downloaded) json["downloaded_to"] = options.download;
  env.out << Dump(json, env.out_is_terminal) << std::flush;
}

// The job with everything the end of the stream may have left out.
v1::QuantizationJob FullJob(Connection& connection, const v1::QuantizationJob& last) {
  return connection.GetJob(last.name()).value_or(last);
}

ExitCode StillRunning(Context& context, StatusLine& line, const v1::QuantizationJob& job,
                      const WaitOptions& options, WaitEnd end) {
  const std::string id(ShortId(job.name()));
  line.Clear();
  context.env.err << "quantry: "
                  << (end == WaitEnd::kTimedOut ? "--wait-timeout passed" : "interrupted") << "; "
                  << id << " goes on\n"
                  << "  watch:  quantry watch " << id << "\n"
                  << "  cancel: quantry cancel " << id << "\n"
                  << std::flush;
  PrintJob(context, job, options, /*downloaded=*/false);
  return end == WaitEnd::kTimedOut ? ExitCode::kWaitTimeout : ExitCode::kInterrupted;
}

// An error while waiting leaves the job alone; say so.
absl::Status WaitBroke(const absl::Status& status, const std::string& job_name) {
  if (status.code() != absl::StatusCode::kUnavailable &&
      status.code() != absl::StatusCode::kDeadlineExceeded) {
    return status;
  }
  return WithNext(status, Cat("the job is safe on the server: `quantry watch ", ShortId(job_name),
                              "` when it is back"));
}

// The command that takes what is in the way out of it.
std::string ForcedPull(std::string_view job, const std::string& folder) {
  return Cat("run `quantry pull ", job, " ", folder, " --force`");
}

// The job has succeeded, whatever becomes of the pull.
ExitCode PullAndPrint(Context& context, Connection& connection, StatusLine& line,
                      const v1::QuantizationJob& job, const WaitOptions& options) {
  const std::string forced = ForcedPull(ShortId(job.name()), options.download);
  const auto pulled = PullArtifact(connection, line, job.artifact(),
                                   {.folder = options.download, .forced = forced});
  if (!pulled.ok()) context.env.err << ErrorText(Describe(pulled.status())) << std::flush;
  PrintJob(context, job, options, pulled.ok());
  return ExitCodeFor(pulled.status());
}

absl::StatusOr<ExitCode> Wait(Context& context, Connection& connection, StatusLine& line,
                              const std::string& job_name, const WaitOptions& options) {
  WatchLimits limits;
  if (options.timeout_s > 0) {
    limits.wait = std::chrono::milliseconds(static_cast<int64_t>(options.timeout_s * 1000));
  }
  Watcher watcher(connection, line, limits);
  const absl::StatusOr<WaitEnd> end = watcher.Follow(job_name);
  line.Clear();
  if (!end.ok()) return WaitBroke(end.status(), job_name);
  if (*end != WaitEnd::kEnded) {
    v1::QuantizationJob job = watcher.view().job();
    job.set_name(job_name);
    return StillRunning(context, line, job, options, *end);
  }
  const v1::QuantizationJob job = FullJob(connection, watcher.view().job());
  if (job.state() == v1::JOB_STATE_FAILED) context.env.err << ErrorText(Describe(job.error()));
  if (job.state() == v1::JOB_STATE_SUCCEEDED && !options.download.empty()) {
    return PullAndPrint(context, connection, line, job, options);
  }
  PrintJob(context, job, options, /*downloaded=*/false);
  return ExitCodeFor(job.state());
}

}  // namespace

absl::Status CheckDownload(const std::string& folder, std::string_view job, bool may_be_there) {
  const std::string manifest = Cat(folder, "/", kManifestName);
  const auto there = LookAt(manifest);
  if (!there.ok()) return there.status();
  if (!std::filesystem::exists(*there)) return PullFolder::Check(folder);
  if (may_be_there) return absl::OkStatus();
  return WithNext(
      absl::FailedPreconditionError(Cat("--download: \"", manifest,
                                        "\" is already there and is another artifact's manifest")),
      Cat("name another folder; or leave --download out and ", ForcedPull(job, folder),
          " when the job has succeeded"));
}

absl::StatusOr<ExitCode> WaitForJob(Context& context, Connection& connection, StatusLine& line,
                                    const std::string& job_name, const WaitOptions& options) {
  absl::StatusOr<ExitCode> code = Wait(context, connection, line, job_name, options);
  if (code.ok()) return code;
  return WithMetadata(code.status(), "job", job_name);
}

absl::StatusOr<PullSummary> PullArtifact(Connection& connection, StatusLine& line,
                                         const std::string& artifact_name,
                                         const PullOptions& options) {
  const absl::StatusOr<v1::Artifact> artifact = GetArtifact(connection, artifact_name);
  if (!artifact.ok()) return artifact.status();
  absl::StatusOr<PullSummary> summary = Puller(connection, line).Pull(*artifact, options);
  line.Clear();
  if (!summary.ok()) return summary;
  if (summary->downloaded == 0) {
    line.Say(Cat("verified ", summary->files, " files, ", Bytes(summary->bytes),
                 ": all there already, every sha256 as in the manifest"));
  } else {
    const double rate =
        static_cast<double>(summary->downloaded_bytes) / std::max(1e-3, summary->seconds);
    line.Say(Cat("pulled and verified ", summary->files, " files, ", Bytes(summary->bytes), " (",
                 Bytes(summary->downloaded_bytes), " now, ", Bytes(static_cast<int64_t>(rate)),
                 "/s)"));
  }
  return summary;
}

}  // namespace quantry::cli
