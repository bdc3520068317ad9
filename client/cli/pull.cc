#include "client/cli/pull.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "client/cli/artifact_file.h"
#include "client/cli/backoff.h"
#include "client/cli/errors.h"
#include "client/cli/names.h"
#include "client/cli/safe_path.h"
#include "client/cli/text.h"
#include "common/crc32c.h"
#include "common/digest.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

// Tries without a byte of advance; with the waits between them about 90 s.
constexpr int kMaxTries = 20;
constexpr auto kFirstWait = std::chrono::milliseconds(250);
constexpr auto kLongestWait = std::chrono::seconds(5);
constexpr int64_t kSlowestBytesPerSecond = 64 << 10;

absl::Status Corrupt(const std::string& message, const std::string& path) {
  return MakeError(Reason::kArtifactCorrupt, message, {{"path", path}});
}

bool IsBelow(const std::string& path, const std::string& folder) {
  return path == folder || path.rfind(folder + "/", 0) == 0;
}

// The output folders of a manifest, by format.
absl::StatusOr<std::string> FolderOfFormat(const v1::Manifest& manifest,
                                           const std::string& format) {
  std::string have;
  for (const v1::OutputSummary& output : manifest.outputs()) {
    if (output.format() == format) return output.path();
    have += (have.empty() ? "" : ", ") + output.format();
  }
  return absl::InvalidArgumentError(Cat("--format: the artifact holds ",
                                        have.empty() ? "no outputs" : have, ", got \"", format,
                                        "\""));
}

// Files of the output at `folder`; the root owns what no other output does.
bool InOutput(const v1::Manifest& manifest, const std::string& path, const std::string& folder) {
  if (!folder.empty()) return IsBelow(path, folder);
  return std::none_of(manifest.outputs().begin(), manifest.outputs().end(),
                      [&](const v1::OutputSummary& output) {
                        return !output.path().empty() && IsBelow(path, output.path());
                      });
}

absl::Status CheckEntries(const v1::Manifest& manifest) {
  std::set<std::string> seen;
  for (const v1::ArtifactFile& file : manifest.files()) {
    if (const auto joined = JoinBelow("", file.path()); !joined.ok()) return joined.status();
    if (!seen.insert(file.path()).second || file.path() == kManifestName || file.size_bytes() < 0 ||
        !IsSha256Hex(file.sha256())) {
      return Corrupt(Cat("the artifact's manifest has a bad entry for \"", file.path(), "\""),
                     file.path());
    }
  }
  return absl::OkStatus();
}

// The size and hash a file has now, if it is a regular file.
bool HoldsExactly(const std::string& path, const v1::ArtifactFile& file) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || static_cast<int64_t>(size) != file.size_bytes()) return false;
  const absl::StatusOr<FileDigest> digest = Sha256File(path);
  return digest.ok() && digest->sha256 == file.sha256();
}

absl::Status Occupied(const std::string& path, const std::string& what) {
  return WithNext(absl::FailedPreconditionError(Cat("\"", path, "\" is already there and is ", what,
                                                    ": nothing was overwritten")),
                  "pull into another folder, or add --force to replace it");
}

// Bytes of the next chunk as announced, or what is wrong with them.
absl::Status CheckChunk(const v1::ReadArtifactResponse& chunk, const v1::ArtifactFile& file,
                        int64_t at) {
  const std::string& data = chunk.data();
  if (chunk.offset() == at && Crc32c(data) == chunk.crc32c() &&
      static_cast<int64_t>(data.size()) <= file.size_bytes() - at) {
    return absl::OkStatus();
  }
  return Corrupt(Cat("bytes of \"", file.path(), "\" from offset ", at, " arrived damaged"),
                 file.path());
}

v1::ArtifactFile ManifestEntry(const v1::Artifact& artifact, const std::string& bytes) {
  v1::ArtifactFile entry;
  entry.set_path(kManifestName);
  entry.set_sha256(artifact.manifest_sha256());
  entry.set_size_bytes(static_cast<int64_t>(bytes.size()));
  return entry;
}

absl::Status WriteManifest(const std::string& target, const v1::Artifact& artifact,
                           const std::string& bytes) {
  absl::StatusOr<PartFile> part = PartFile::Open(target, artifact.manifest_sha256());
  if (!part.ok()) return part.status();
  if (absl::Status status = part->Reset(); !status.ok()) return status;
  if (absl::Status status = part->Append(bytes); !status.ok()) return status;
  return part->Commit();
}

bool Retryable(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable ||
         status.code() == absl::StatusCode::kDeadlineExceeded ||
         status.code() == absl::StatusCode::kResourceExhausted;
}

}  // namespace

absl::StatusOr<std::vector<v1::ArtifactFile>> ChooseFiles(const v1::Manifest& manifest,
                                                          const PullOptions& options) {
  if (absl::Status status = CheckEntries(manifest); !status.ok()) return status;
  std::string folder;
  if (!options.format.empty()) {
    absl::StatusOr<std::string> found = FolderOfFormat(manifest, options.format);
    if (!found.ok()) return found.status();
    folder = *std::move(found);
  }
  std::vector<v1::ArtifactFile> files;
  for (const v1::ArtifactFile& file : manifest.files()) {
    if (!options.format.empty() && !InOutput(manifest, file.path(), folder)) continue;
    if (!options.path.empty() && !IsBelow(file.path(), options.path)) continue;
    files.push_back(file);
  }
  if (files.empty() && !options.path.empty()) {
    return absl::InvalidArgumentError(
        Cat("--path: the artifact has no file or folder \"", options.path, "\""));
  }
  return files;
}

absl::Status Puller::FillOnce(const std::string& artifact, const v1::ArtifactFile& file,
                              PartFile& part, TransferMeter& meter) {
  grpc::ClientContext context;
  connection_.AddMetadata(context);
  const int64_t slowest_s = 60 + (file.size_bytes() - part.size()) / kSlowestBytesPerSecond;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(slowest_s));
  const Interrupter::Guard guard(connection_.env().interrupter,
                                 [&context] { context.TryCancel(); });
  v1::ReadArtifactRequest request;
  request.set_name(artifact);
  request.set_path(file.path());
  request.set_read_offset(part.size());
  const auto reader = connection_.artifacts().ReadArtifact(&context, request);
  v1::ReadArtifactResponse chunk;
  while (reader->Read(&chunk)) {
    absl::Status status = CheckChunk(chunk, file, part.size());
    if (status.ok()) status = part.Append(chunk.data());
    if (!status.ok()) {
      context.TryCancel();
      (void)reader->Finish();
      return status;
    }
    meter.Add(static_cast<int64_t>(chunk.data().size()));
  }
  return connection_.Explain(reader->Finish());
}

absl::Status Puller::Fill(const std::string& artifact, const v1::ArtifactFile& file, PartFile& part,
                          TransferMeter& meter) {
  Environment& env = connection_.env();
  Backoff backoff(kFirstWait, kLongestWait);
  for (int tries = 1; part.size() < file.size_bytes(); ++tries) {
    const int64_t before = part.size();
    const absl::Status status = FillOnce(artifact, file, part, meter);
    if (!status.ok() && !Retryable(status)) return status;
    if (part.size() > before) tries = 0;
    if (part.size() >= file.size_bytes()) break;
    if (tries >= kMaxTries) {
      return status.ok() ? Corrupt(Cat("\"", file.path(), "\" ends after ", part.size(),
                                       " bytes: wanted ", file.size_bytes()),
                                   file.path())
                         : status;
    }
    env.sleep(backoff.Next(env.random()));
    connection_.Refresh();
  }
  return absl::OkStatus();
}

absl::Status Puller::Download(const std::string& artifact, const v1::ArtifactFile& file,
                              const std::string& target, TransferMeter& meter) {
  absl::StatusOr<PartFile> part = PartFile::Open(target, file.sha256());
  if (!part.ok()) return part.status();
  meter.Start(file.path());
  meter.Add(std::min(part->size(), file.size_bytes()));
  for (int tries = 1;; ++tries) {
    absl::Status status = part->size() > file.size_bytes() ? Corrupt("too many bytes", file.path())
                                                           : Fill(artifact, file, *part, meter);
    if (status.ok() && part->Matches(file.size_bytes())) return part->Commit();
    if (!status.ok() && status.code() != absl::StatusCode::kDataLoss) return status;
    if (status.ok()) {
      status = Corrupt(Cat("\"", file.path(), "\" arrived with another sha256 than the manifest's ",
                           file.sha256()),
                       file.path());
    }
    if (tries > 1) {
      part->Discard();
      return status;
    }
    line_.Say(Cat("quantry: ", std::string(status.message()), "; fetching it once more"));
    meter.Rewind(part->size());
    if (absl::Status reset = part->Reset(); !reset.ok()) return reset;
  }
}

absl::Status Puller::PullFile(const v1::Artifact& artifact, const v1::ArtifactFile& file,
                              const PullOptions& options, bool ours, TransferMeter& meter,
                              PullSummary& summary) {
  const absl::StatusOr<std::string> target = JoinBelow(options.folder, file.path());
  if (!target.ok()) return target.status();
  ++summary.files;
  summary.bytes += file.size_bytes();
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(*target, error))) {
    if (HoldsExactly(*target, file)) {
      meter.Add(file.size_bytes());
      return absl::OkStatus();
    }
    if (!ours && !options.force) return Occupied(*target, "not the artifact's file");
    line_.Say(Cat("quantry: \"", *target, "\" differs from the manifest; fetching it again"));
  }
  absl::Status status = Download(artifact.name(), file, *target, meter);
  if (!status.ok()) return status;
  ++summary.downloaded;
  summary.downloaded_bytes += file.size_bytes();
  return absl::OkStatus();
}

absl::StatusOr<PullSummary> Puller::Pull(const v1::Artifact& artifact, const PullOptions& options) {
  const absl::StatusOr<std::string> bytes = FetchFile(
      connection_, artifact.name(), kManifestName, artifact.manifest_sha256(), kMaxManifestBytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<v1::Manifest> manifest = ParseManifest(*bytes);
  if (!manifest.ok()) return manifest.status();
  PullSummary summary;
  summary.manifest = *std::move(manifest);
  const auto files = ChooseFiles(summary.manifest, options);
  if (!files.ok()) return files.status();
  const std::string target = Cat(options.folder, "/", kManifestName);
  const bool ours = HoldsExactly(target, ManifestEntry(artifact, *bytes));
  const auto there = LookAt(target);
  if (!there.ok()) return there.status();
  if (!ours && std::filesystem::exists(*there) && !options.force) {
    return Occupied(target, "another artifact's manifest");
  }
  int64_t total = 0;
  for (const v1::ArtifactFile& file : *files) total += file.size_bytes();
  TransferMeter meter(connection_.env(), line_, "downloading", total);
  for (const v1::ArtifactFile& file : *files) {
    absl::Status status = PullFile(artifact, file, options, ours, meter, summary);
    if (!status.ok()) return status;
  }
  line_.Clear();
  summary.seconds = meter.seconds();
  if (ours) return summary;
  if (absl::Status status = WriteManifest(target, artifact, *bytes); !status.ok()) return status;
  return summary;
}

}  // namespace quantry::cli
