#include "client/cli/pull.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
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

absl::Status CorruptFile(const std::string& message, const std::string& path) {
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
      return CorruptFile(Cat("the artifact's manifest has a bad entry for \"", file.path(), "\""),
                         file.path());
    }
  }
  return absl::OkStatus();
}

absl::Status Occupied(const std::string& path, const std::string& what,
                      const PullOptions& options) {
  return WithNext(absl::FailedPreconditionError(Cat("\"", path, "\" is already there and is ", what,
                                                    ": nothing was overwritten")),
                  Cat("pull into another folder, or ", options.forced, " to replace it"));
}

absl::Status InTheWay(const std::string& path) {
  return WithNext(absl::FailedPreconditionError(
                      Cat("\"", path, "\" is a folder, the artifact has a file of that name")),
                  "pull into another folder");
}

// Bytes of the next chunk as announced, or what is wrong with them.
absl::Status CheckChunk(const v1::ReadArtifactResponse& chunk, const v1::ArtifactFile& file,
                        int64_t at) {
  const std::string& data = chunk.data();
  if (chunk.offset() == at && Crc32c(data) == chunk.crc32c() &&
      static_cast<int64_t>(data.size()) <= file.size_bytes() - at) {
    return absl::OkStatus();
  }
  return CorruptFile(Cat("bytes of \"", file.path(), "\" from offset ", at, " arrived damaged"),
                     file.path());
}

v1::ArtifactFile ManifestEntry(const v1::Artifact& artifact, const std::string& bytes) {
  v1::ArtifactFile entry;
  entry.set_path(kManifestName);
  entry.set_sha256(artifact.manifest_sha256());
  entry.set_size_bytes(static_cast<int64_t>(bytes.size()));
  return entry;
}

absl::StatusOr<PartFile> PartOfManifest(const std::string& target, const v1::Artifact& artifact,
                                        const std::string& bytes) {
  absl::StatusOr<PartFile> part = PartFile::Open(target, artifact.manifest_sha256());
  if (!part.ok()) return part;
  absl::Status status = part->Reset();
  if (status.ok()) status = part->Append(bytes);
  if (status.ok()) status = part->Sync();
  if (!status.ok()) return status;
  return part;
}

// The files of the artifact that lies in a folder; none when it is no artifact.
std::vector<v1::ArtifactFile> FormerFiles(const std::string& manifest_path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(manifest_path, error);
  if (error || size > static_cast<uintmax_t>(kMaxManifestBytes)) return {};
  std::ifstream in(manifest_path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(in), {});
  const absl::StatusOr<v1::Manifest> manifest = ParseManifest(bytes);
  if (!manifest.ok()) return {};
  return ChooseFiles(*manifest, {}).value_or(std::vector<v1::ArtifactFile>());
}

// A forced pull keeps every file it fetched open until all change places.
void AllowManyFiles() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
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

std::vector<v1::OutputSummary> ChooseOutputs(const v1::Manifest& manifest,
                                             const PullOptions& options) {
  std::vector<v1::OutputSummary> outputs;
  for (const v1::OutputSummary& output : manifest.outputs()) {
    if (!options.format.empty() && output.format() != options.format) continue;
    if (!options.path.empty() && !IsBelow(output.path(), options.path)) continue;
    outputs.push_back(output);
  }
  return outputs;
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
    if (!status.ok() && !IsBreak(status)) return status;
    if (part.size() > before) tries = 0;
    if (part.size() >= file.size_bytes()) break;
    if (tries >= kMaxTries) {
      return status.ok() ? CorruptFile(Cat("\"", file.path(), "\" ends after ", part.size(),
                                           " bytes: wanted ", file.size_bytes()),
                                       file.path())
                         : status;
    }
    env.sleep(backoff.Next(env.random()));
    connection_.Refresh(status);
  }
  return absl::OkStatus();
}

struct Puller::Work {
  const v1::Artifact& artifact;
  const PullOptions& options;
  bool ours;  // the folder has the artifact's manifest
  TransferMeter meter;
  PullSummary summary;
  std::vector<PartFile> parts = {};   // of a forced pull: all change places together
  std::set<std::string> wanted = {};  // names of the files this pull leaves in the folder

  bool at_once() const { return !ours && options.force; }
};

absl::StatusOr<PartFile> Puller::Download(const v1::ArtifactFile& file, const std::string& target,
                                          Work& work) {
  absl::StatusOr<PartFile> part = PartFile::Open(target, file.sha256());
  if (!part.ok()) return part;
  work.meter.Start(file.path());
  work.meter.Add(std::min(part->size(), file.size_bytes()));
  for (int tries = 1;; ++tries) {
    absl::Status status = part->size() > file.size_bytes()
                              ? CorruptFile("too many bytes", file.path())
                              : Fill(work.artifact.name(), file, *part, work.meter);
    if (status.ok() && part->Matches(file.size_bytes())) {
      if (status = part->Sync(); !status.ok()) return status;
      return part;
    }
    if (!status.ok() && status.code() != absl::StatusCode::kDataLoss) return status;
    if (status.ok()) {
      status =
          CorruptFile(Cat("\"", file.path(), "\" arrived with another sha256 than the manifest's ",
                          file.sha256()),
                      file.path());
    }
    if (tries > 1) {
      part->Discard();
      return status;
    }
    line_.Say(Cat("quantry: ", std::string(status.message()), "; fetching it once more"));
    work.meter.Rewind(part->size());
    if (absl::Status reset = part->Reset(); !reset.ok()) return reset;
  }
}

absl::Status Puller::PullFile(const v1::ArtifactFile& file, Work& work) {
  const absl::StatusOr<std::string> target = JoinBelow(work.options.folder, file.path());
  if (!target.ok()) return target.status();
  ++work.summary.files;
  work.wanted.insert(file.path());
  work.summary.bytes += file.size_bytes();
  std::error_code error;
  const auto there = std::filesystem::symlink_status(*target, error);
  if (std::filesystem::is_directory(there)) return InTheWay(*target);
  if (std::filesystem::exists(there)) {
    if (HoldsExactly(*target, file)) {
      work.meter.Add(file.size_bytes());
      return absl::OkStatus();
    }
    if (!work.ours && !work.options.force) {
      return Occupied(*target, "not the artifact's file", work.options);
    }
    line_.Say(Cat("quantry: \"", *target, "\" differs from the manifest; fetching it again"));
  }
  absl::StatusOr<PartFile> part = Download(file, *target, work);
  if (!part.ok()) return part.status();
  ++work.summary.downloaded;
  work.summary.downloaded_bytes += file.size_bytes();
  if (!work.at_once()) return part->Commit();
  work.parts.push_back(*std::move(part));
  return absl::OkStatus();
}

absl::Status Puller::PutManifest(const std::string& target, const std::string& bytes, Work& work) {
  if (work.ours) return absl::OkStatus();
  absl::StatusOr<PartFile> part = PartOfManifest(target, work.artifact, bytes);
  if (!part.ok()) return part.status();
  const std::string aside = Cat(work.options.folder, "/", kFormerManifestName);
  std::vector<v1::ArtifactFile> former = FormerFiles(target);
  for (v1::ArtifactFile& file : FormerFiles(aside)) former.push_back(std::move(file));
  std::erase_if(former, [&](const auto& file) { return work.wanted.contains(file.path()); });
  return Replace(
      work.options.folder,
      {.files = std::move(work.parts), .manifest = *std::move(part), .former = std::move(former)});
}

absl::StatusOr<PullSummary> Puller::Pull(const v1::Artifact& artifact, const PullOptions& options) {
  const absl::StatusOr<std::string> bytes = FetchFile(
      connection_, artifact.name(), kManifestName, artifact.manifest_sha256(), kMaxManifestBytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<v1::Manifest> manifest = ParseManifest(*bytes);
  if (!manifest.ok()) return manifest.status();
  const auto files = ChooseFiles(*manifest, options);
  if (!files.ok()) return files.status();
  const std::string target = Cat(options.folder, "/", kManifestName);
  const auto there = LookAt(target);
  if (!there.ok()) return there.status();
  absl::StatusOr<PullFolder> held = PullFolder::Hold(options.folder);
  if (!held.ok()) return held.status();
  const bool ours = HoldsExactly(target, ManifestEntry(artifact, *bytes));
  if (!ours && std::filesystem::exists(LookAt(target).value_or(*there)) && !options.force) {
    return Occupied(target, "another artifact's manifest", options);
  }
  int64_t total = 0;
  for (const v1::ArtifactFile& file : *files) total += file.size_bytes();
  Work work{.artifact = artifact,
            .options = options,
            .ours = ours,
            .meter = TransferMeter(connection_.env(), line_, "downloading", total),
            .summary = {.manifest = *std::move(manifest), .held = *std::move(held)}};
  if (work.at_once()) AllowManyFiles();
  for (const v1::ArtifactFile& file : *files) {
    if (absl::Status status = PullFile(file, work); !status.ok()) return status;
  }
  line_.Clear();
  if (absl::Status status = PutManifest(target, *bytes, work); !status.ok()) return status;
  for (const v1::ArtifactFile& file : *files) {
    RemoveOldParts(Cat(options.folder, "/", file.path()));
  }
  work.summary.seconds = work.meter.seconds();
  return std::move(work.summary);
}

}  // namespace quantry::cli
