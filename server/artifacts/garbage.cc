#include "server/artifacts/garbage.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/digest.h"
#include "common/ids.h"

namespace quantry::server {
namespace {

constexpr int kJobsPerPage = 500;
constexpr std::string_view kCheckpoints = "checkpoints";
constexpr std::string_view kPartial = ".partial";

std::vector<std::string> Parts(const std::string& path) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<std::int64_t> Epoch(const std::string& text) {
  std::int64_t epoch = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), epoch);
  if (error != std::errc() || end != text.data() + text.size() || epoch < 0) return std::nullopt;
  return epoch;
}

// What one attempt wrote: an output or its checkpoints.
struct Attempt {
  std::string job_uid;
  std::int64_t epoch = 0;
  bool is_checkpoint = false;
  std::vector<StoredFile> files;
};

// By prefix below the artifact root: {tenant}/{uid}/{epoch} and
// {tenant}/{uid}/checkpoints/{epoch}.
std::map<std::string, Attempt> GroupByAttempt(const std::vector<StoredFile>& files) {
  std::map<std::string, Attempt> attempts;
  for (const StoredFile& file : files) {
    const std::vector<std::string> parts = Parts(file.path);
    if (parts.size() < 4 || !ValidateTenant(parts[0]).ok() || !IsUuid(parts[1])) continue;
    const bool is_checkpoint = parts[2] == kCheckpoints;
    if (is_checkpoint && parts.size() < 5) continue;
    const std::string& number = parts[is_checkpoint ? 3 : 2];
    const auto epoch = Epoch(number);
    if (!epoch) continue;
    std::string prefix = parts[0] + "/" + parts[1] + "/" + parts[2];
    if (is_checkpoint) prefix += "/" + number;
    Attempt& attempt = attempts[prefix];
    attempt.job_uid = parts[1];
    attempt.epoch = *epoch;
    attempt.is_checkpoint = is_checkpoint;
    attempt.files.push_back(file);
  }
  return attempts;
}

// What the jobs need.
struct Needed {
  std::map<std::string, JobReferences> jobs;            // by uid
  std::set<std::pair<std::string, std::string>> blobs;  // (tenant, sha256)

  bool Needs(const Attempt& attempt) const {
    const auto job = jobs.find(attempt.job_uid);
    if (job == jobs.end()) return false;
    const auto& epochs = attempt.is_checkpoint ? job->second.checkpoints : job->second.outputs;
    return epochs.contains(attempt.epoch);
  }
};

absl::StatusOr<Needed> ReadNeeded(JobStore& store) {
  Needed needed;
  std::string after;
  while (true) {
    auto page = store.ListReferences(after, kJobsPerPage);
    if (!page.ok()) return page.status();
    for (JobReferences& job : *page) {
      for (const std::string& sha256 : job.blobs) needed.blobs.emplace(job.tenant, sha256);
      after = job.uid;
      job.blobs.clear();
      needed.jobs[job.uid] = std::move(job);
    }
    if (static_cast<int>(page->size()) < kJobsPerPage) return needed;
  }
}

class Collector {
 public:
  Collector(Storage& artifacts, Storage& blobs, const GarbageOptions& options, Time now)
      : artifacts_(artifacts), blobs_(blobs), options_(options), oldest_(now - options.grace) {}

  bool IsOld(const StoredFile& file) const { return file.modified < oldest_; }

  absl::Status Take(const std::string& prefix, const Attempt& attempt) {
    if (!std::all_of(attempt.files.begin(), attempt.files.end(),
                     [&](const StoredFile& file) { return IsOld(file); })) {
      return absl::OkStatus();
    }
    if (!options_.dry_run) {
      if (auto status = artifacts_.DeleteTree(prefix); !status.ok()) return status;
    }
    ++report_.attempts;
    for (const StoredFile& file : attempt.files) Count(file);
    return absl::OkStatus();
  }

  absl::Status TakeBlob(const StoredFile& listed) {
    auto now = blobs_.Stat(listed.path);
    if (!now.ok()) return now.status();
    if (!now->has_value() || !IsOld(**now)) return absl::OkStatus();
    if (!options_.dry_run) {
      if (auto status = blobs_.Delete(listed.path); !status.ok()) return status;
    }
    ++report_.blobs;
    Count(listed);
    return absl::OkStatus();
  }

  const GarbageReport& report() const { return report_; }

 private:
  void Count(const StoredFile& file) {
    ++report_.objects;
    report_.bytes += file.size_bytes;
  }

  Storage& artifacts_;
  Storage& blobs_;
  const GarbageOptions options_;
  const Time oldest_;
  GarbageReport report_;
};

// Whether the attempt's output is an artifact: the job that made it may be gone
// and others still share it. Asked last, so that none shared meanwhile is missed.
absl::StatusOr<bool> IsArtifact(JobStore& jobs, const std::string& prefix, const Attempt& attempt) {
  if (attempt.is_checkpoint) return false;
  const auto artifact = jobs.GetArtifact(Parts(prefix).front(), attempt.job_uid);
  if (artifact.ok()) return artifact->epoch == attempt.epoch;
  if (absl::IsNotFound(artifact.status())) return false;
  return artifact.status();
}

// A finished upload that a job names. Unfinished ones have only their age.
bool IsNeededBlob(const Needed& needed, const std::vector<std::string>& parts) {
  return parts.size() == 2 && needed.blobs.contains({parts[0], parts[1]});
}

// {tenant}/{sha256} or {tenant}/.partial/{sha256}
bool IsBlobPath(const std::vector<std::string>& parts) {
  return ValidateTenant(parts[0]).ok() && IsSha256Hex(parts.back()) &&
         (parts.size() == 2 || (parts.size() == 3 && parts[1] == kPartial));
}

}  // namespace

absl::StatusOr<GarbageReport> CollectGarbage(JobStore& jobs, Storage& artifacts, Storage& blobs,
                                             const GarbageOptions& options, Time now) {
  auto artifact_files = artifacts.List("");
  if (!artifact_files.ok()) return artifact_files.status();
  auto blob_files = blobs.List("");
  if (!blob_files.ok()) return blob_files.status();
  auto needed = ReadNeeded(jobs);
  if (!needed.ok()) return needed.status();
  Collector collector(artifacts, blobs, options, now);
  for (const auto& [prefix, attempt] : GroupByAttempt(*artifact_files)) {
    if (needed->Needs(attempt)) continue;
    auto kept = IsArtifact(jobs, prefix, attempt);
    if (!kept.ok()) return kept.status();
    if (*kept) continue;
    if (auto status = collector.Take(prefix, attempt); !status.ok()) return status;
  }
  for (const StoredFile& file : *blob_files) {
    const std::vector<std::string> parts = Parts(file.path);
    if (!IsBlobPath(parts) || !collector.IsOld(file) || IsNeededBlob(*needed, parts)) continue;
    if (auto status = collector.TakeBlob(file); !status.ok()) return status;
  }
  return collector.report();
}

}  // namespace quantry::server
