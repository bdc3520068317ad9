#include "worker/agent/artifact_uploader.h"

#include <limits>

#include "common/digest.h"
#include "common/errors.h"
#include "google/protobuf/util/json_util.h"
#include "worker/agent/engine_file.h"
#include "worker/agent/name_attempt.h"

namespace quantry::agent {
namespace {

constexpr char kManifest[] = "manifest.json";
constexpr std::int64_t kMaxManifestBytes = 64 << 20;
constexpr int kMaxArtifactFiles = 100000;

absl::Status ProtocolError(const std::string& what) {
  return MakeError(Reason::kEngineProtocol, what + "; this is a bug in quantry-engine");
}

absl::Status Corrupt(const v1::ArtifactFile& file, const Transferred& sent) {
  return MakeError(Reason::kArtifactCorrupt,
                   "artifact file " + file.path() + " should have " +
                       std::to_string(file.size_bytes()) + " bytes with sha256 " + file.sha256() +
                       ", read were " + std::to_string(sent.size_bytes) + " bytes with sha256 " +
                       sent.sha256,
                   {{"path", file.path()}, {"got_sha256", sent.sha256}});
}

// Writing the artifact is this machine's and the store's business: nothing a
// user could have asked differently.
absl::Status StoreError(const std::string& uri, const absl::Status& status) {
  if (absl::IsCancelled(status) || !ReasonOf(status).empty()) return status;
  const bool full = absl::IsResourceExhausted(status);
  return MakeError(full ? Reason::kDiskFull : Reason::kStorageError,
                   "cannot store the artifact: " + std::string(status.message()),
                   {{"output_uri", uri}});
}

// A manifest leaves out figures that are not finite, which no JSON can say. As
// 0 a ruined model would pass for the best; a perplexity that was measured is 1
// at least.
void TellNotFinite(v1::Quality* quality) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  v1::Perplexity* perplexity = quality->mutable_perplexity();
  if (perplexity->tokens() == 0) return;
  if (perplexity->dense() == 0) perplexity->set_dense(kInfinity);
  if (perplexity->quantized() != 0) return;
  perplexity->set_quantized(kInfinity);
  if (quality->kl_divergence() == 0) quality->set_kl_divergence(kInfinity);
}

}  // namespace

absl::StatusOr<v1::Manifest> ParseManifest(const std::string& json) {
  v1::Manifest manifest;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &manifest, options);
  if (!status.ok()) {
    return ProtocolError("manifest.json is not a quantry manifest: " +
                         std::string(status.message()));
  }
  if (manifest.files().empty() || manifest.files_size() > kMaxArtifactFiles) {
    return ProtocolError("manifest.json lists " + std::to_string(manifest.files_size()) +
                         " files, wanted 1 to " + std::to_string(kMaxArtifactFiles));
  }
  return manifest;
}

v1::JobResult ResultFromManifest(const v1::Manifest& manifest, const std::string& artifact_uri) {
  v1::JobResult result;
  if (manifest.has_quality()) {
    *result.mutable_quality() = manifest.quality();
    TellNotFinite(result.mutable_quality());
  }
  if (manifest.has_bits()) *result.mutable_bits() = manifest.bits();
  *result.mutable_outputs() = manifest.outputs();
  *result.mutable_timing() = manifest.timing();
  *result.mutable_blocks() = manifest.blocks();
  result.set_peak_rss_bytes(manifest.peak_rss_bytes());
  result.set_quality_gate_failed(manifest.quality_gate_failed());
  result.set_artifact_uri(artifact_uri);
  return result;
}

absl::StatusOr<v1::CompleteJobRequest> UploadArtifact(const v1::Lease& lease,
                                                      const std::string& output_dir,
                                                      const v1::EngineCompleted& completed,
                                                      const TransferCheck& check,
                                                      Patience& patience) {
  const auto written = EngineFile::Open(output_dir, kManifest);
  const auto json = written.ok() ? written->Read(kMaxManifestBytes) : written.status();
  if (!json.ok()) {
    return ProtocolError("the engine said completed but manifest.json: " +
                         std::string(json.status().message()));
  }
  const std::string digest = Sha256Hex(*json);
  if (!completed.manifest_sha256().empty() && completed.manifest_sha256() != digest) {
    return ProtocolError("the engine announced manifest sha256 " + completed.manifest_sha256() +
                         ", the file has " + digest);
  }
  auto manifest = ParseManifest(*json);
  if (!manifest.ok()) return manifest.status();
  absl::StatusOr<std::unique_ptr<Storage>> target = absl::UnavailableError("");
  if (auto status =
          patience.Try([&] { return (target = OpenStorage(lease.output_uri())).status(); });
      !status.ok()) {
    return StoreError(lease.output_uri(), status);
  }

  v1::CompleteJobRequest request;
  for (const v1::ArtifactFile& file : manifest->files()) {
    if (auto status = CheckRelativePath(file.path()); !status.ok()) {
      return ProtocolError("manifest.json: " + std::string(status.message()));
    }
    const auto source = EngineFile::Open(output_dir, file.path());
    if (!source.ok()) {
      return ProtocolError("manifest.json lists a file that cannot be taken: " +
                           std::string(source.status().message()));
    }
    absl::StatusOr<Transferred> sent = absl::UnavailableError("");
    const auto upload = [&] {
      sent = (*target)->Upload(source->path(), file.path(), check);
      return sent.status();
    };
    if (auto status = patience.Try(upload); !status.ok()) {
      return StoreError(lease.output_uri(), status);
    }
    if (sent->sha256 != file.sha256() || sent->size_bytes != file.size_bytes()) {
      return Corrupt(file, *sent);
    }
    request.set_total_bytes(request.total_bytes() + sent->size_bytes);
  }
  if (auto status = patience.Try([&] { return (*target)->Write(kManifest, *json); });
      !status.ok()) {
    return StoreError(lease.output_uri(), status);
  }
  if (check) {
    if (auto status = check(static_cast<std::int64_t>(json->size())); !status.ok()) return status;
  }
  NameAttempt(lease, &request);
  request.set_manifest_sha256(digest);
  request.set_total_bytes(request.total_bytes() + static_cast<std::int64_t>(json->size()));
  request.set_file_count(manifest->files_size() + 1);
  *request.mutable_result() = ResultFromManifest(*manifest, lease.output_uri());
  request.mutable_result()->set_quality_gate_failed(completed.quality_gate_failed() ||
                                                    manifest->quality_gate_failed());
  return request;
}

}  // namespace quantry::agent
