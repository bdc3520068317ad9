#include "client/cli/artifact_file.h"

#include <google/protobuf/util/json_util.h>

#include "client/cli/backoff.h"
#include "client/cli/errors.h"
#include "client/cli/names.h"
#include "client/cli/progress.h"
#include "client/cli/text.h"
#include "common/digest.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

absl::Status NoArtifact(const v1::QuantizationJob& job) {
  const std::string id(ShortId(job.name()));
  absl::Status status = absl::FailedPreconditionError(
      Cat("job ", id, " has no artifact: its state is ", StateWord(job.state())));
  return WithNext(status, IsEnded(job.state()) ? Cat("`quantry get ", id, "` shows how it ended")
                                               : Cat("`quantry watch ", id, "` until it ends"));
}

// What one stream brings; stops beyond max_bytes.
absl::Status FetchOnce(Connection& connection, const std::string& artifact, const std::string& path,
                       int64_t max_bytes, std::string* bytes) {
  grpc::ClientContext context;
  connection.AddMetadata(context);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const Interrupter::Guard guard(connection.env().interrupter, [&context] { context.TryCancel(); });
  v1::ReadArtifactRequest request;
  request.set_name(artifact);
  request.set_path(path);
  const auto reader = connection.artifacts().ReadArtifact(&context, request);
  v1::ReadArtifactResponse chunk;
  while (reader->Read(&chunk)) {
    *bytes += chunk.data();
    if (static_cast<int64_t>(bytes->size()) <= max_bytes) continue;
    context.TryCancel();
    (void)reader->Finish();
    return absl::OkStatus();  // it cannot be the file that is wanted
  }
  return connection.Explain(reader->Finish());
}

absl::Status OtherContent(const std::string& artifact, const std::string& path,
                          const std::string& sha256) {
  return MakeError(
      Reason::kArtifactCorrupt,
      Cat(path, " of ", artifact, " has another sha256 than the record of it, ", sha256),
      {{"path", path}});
}

}  // namespace

absl::StatusOr<std::string> FindArtifact(Context& context, Connection& connection,
                                         const std::string& source) {
  if (std::string name = ResolveArtifact(context.global.tenant, source); !name.empty()) {
    return name;
  }
  absl::StatusOr<std::string> name = ResolveJob(context.global.tenant, source);
  if (!name.ok()) return name;
  const absl::StatusOr<v1::QuantizationJob> job = connection.GetJob(*name);
  if (!job.ok()) return job.status();
  if (job->artifact().empty()) return NoArtifact(*job);
  return job->artifact();
}

absl::StatusOr<v1::Artifact> GetArtifact(Connection& connection, const std::string& name) {
  v1::GetArtifactRequest request;
  request.set_name(name);
  v1::Artifact artifact;
  absl::Status status = connection.Call(connection.artifacts(), &Connection::Artifacts::GetArtifact,
                                        request, &artifact);
  if (!status.ok()) return status;
  return artifact;
}

absl::StatusOr<std::string> FetchFile(Connection& connection, const std::string& artifact,
                                      const std::string& path, const std::string& sha256,
                                      int64_t max_bytes) {
  Environment& env = connection.env();
  Backoff backoff(kFirstWait, kLongestWait);
  int wrong = 0;
  for (int tries = 1;; ++tries) {
    std::string bytes;
    const absl::Status status = FetchOnce(connection, artifact, path, max_bytes, &bytes);
    if (Sha256Hex(bytes) == sha256) return bytes;
    if (!status.ok() && (!IsBreak(status) || tries >= kMaxTries)) return status;
    if (status.ok() && ++wrong > 1) return OtherContent(artifact, path, sha256);
    if (status.ok()) continue;
    env.sleep(backoff.Next(env.random()));
    connection.Refresh(status);
  }
}

absl::StatusOr<v1::Manifest> ParseManifest(const std::string& json) {
  v1::Manifest manifest;
  google::protobuf::util::JsonParseOptions lenient;
  lenient.ignore_unknown_fields = true;
  if (google::protobuf::util::JsonStringToMessage(json, &manifest, lenient).ok()) return manifest;
  return MakeError(Reason::kArtifactCorrupt, "manifest.json is not the JSON of a manifest",
                   {{"path", kManifestName}});
}

}  // namespace quantry::cli
