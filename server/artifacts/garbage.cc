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
#include "server/artifacts/blob_store.h"

namespace quantry::server {
namespace {

constexpr int kJobsPerPage = 100;  // each may have a spec of 256 KiB
constexpr std::string_view kCheckpoints = "checkpoints";

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

// {tenant}/.asked/{sha256} of any file of a blob.
std::string MarkerOf(const std::vector<std::string>& parts) {
  return parts.front() + "/" + std::string(kAskedFolder) + "/" + parts.back();
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

absl::Status StoppedBy(const std::stop_token& stop) {
  return stop.stop_requested() ? absl::CancelledError("the collection of garbage was stopped")
                               : absl::OkStatus();
}

absl::StatusOr<Needed> ReadNeeded(JobStore& store, const std::stop_token& stop) {
  Needed needed;
  std::string after;
  while (true) {
    if (absl::Status status = StoppedBy(stop); !status.ok()) return status;
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
  Collector(const GarbageOptions& options, Time now, std::stop_token stop)
      : options_(options), oldest_(now - options.grace), stop_(std::move(stop)) {}

  absl::Status Stopped() const { return StoppedBy(stop_); }

  bool IsOld(const StoredFile& file) const { return file.modified < oldest_; }

  absl::Status Take(Storage& artifacts, const std::string& prefix, const Attempt& attempt) {
    if (!std::all_of(attempt.files.begin(), attempt.files.end(),
                     [&](const StoredFile& file) { return IsOld(file); })) {
      return absl::OkStatus();
    }
    if (!options_.dry_run) {
      if (auto status = artifacts.DeleteTree(prefix); !status.ok()) return status;
    }
    ++report_.attempts;
    for (const StoredFile& file : attempt.files) Count(file);
    return absl::OkStatus();
  }

  // An upload, or the marker of one that is gone. Who finds the blob and submits its job
  // between the looks here and the deletion still loses it: that job ends with SOURCE_MISSING.
  absl::Status TakeBlob(Storage& blobs, const StoredFile& listed,
                        const std::vector<std::string>& parts) {
    for (const std::string& path : {listed.path, MarkerOf(parts)}) {
      auto now = blobs.Stat(path);
      if (!now.ok()) return now.status();
      if (now->has_value() ? !IsOld(**now) : path == listed.path) return absl::OkStatus();
    }
    if (!options_.dry_run) {
      if (auto status = blobs.Delete(listed.path); !status.ok()) return status;
    }
    if (parts[1] != kAskedFolder) ++report_.blobs;
    Count(listed);
    return absl::OkStatus();
  }

  // What an upload that did not end has left.
  absl::Status TakeTemporary(Storage& storage, const StoredFile& file) {
    if (!options_.dry_run) {
      const std::string_view held = TemporaryOf(file.path);
      auto status = held == file.path ? storage.Delete(held) : storage.DeleteTree(held);
      if (!status.ok()) return status;
    }
    Count(file);
    return absl::OkStatus();
  }

  // What cannot be removed must not keep what comes behind it.
  void Failed(const absl::Status& status) {
    if (status.ok()) return;
    if (report_.failures++ == 0) report_.first_failure = status;
  }

  const GarbageReport& report() const { return report_; }

 private:
  void Count(const StoredFile& file) {
    ++report_.objects;
    report_.bytes += file.size_bytes;
  }

  const GarbageOptions options_;
  const Time oldest_;
  const std::stop_token stop_;
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

// {tenant}/{sha256}, {tenant}/.partial/{sha256} or {tenant}/.asked/{sha256}
bool IsBlobPath(const std::vector<std::string>& parts) {
  return ValidateTenant(parts[0]).ok() && IsSha256Hex(parts.back()) &&
         (parts.size() == 2 ||
          (parts.size() == 3 && (parts[1] == kPartialFolder || parts[1] == kAskedFolder)));
}

absl::Status CollectBlobs(const Needed& needed, Storage& blobs,
                          const std::vector<StoredFile>& files, Collector* collector) {
  for (const StoredFile& file : files) {
    if (absl::Status status = collector->Stopped(); !status.ok()) return status;
    const std::vector<std::string> parts = Parts(file.path);
    if (!IsBlobPath(parts) || !collector->IsOld(file) || IsNeededBlob(needed, parts)) continue;
    collector->Failed(collector->TakeBlob(blobs, file, parts));
  }
  return absl::OkStatus();
}

// Removes old temporaries, wherever they are, from the store and from `files`. A younger one
// is an upload in progress: it stays a file of its attempt.
absl::Status CollectTemporaries(Storage& storage, Collector* collector,
                                std::vector<StoredFile>* files) {
  absl::Status stopped;
  std::erase_if(*files, [&](const StoredFile& file) {
    if (TemporaryOf(file.path).empty() || !collector->IsOld(file) || !stopped.ok()) return false;
    stopped = collector->Stopped();
    if (stopped.ok()) collector->Failed(collector->TakeTemporary(storage, file));
    return true;
  });
  return stopped;
}

}  // namespace

absl::StatusOr<GarbageReport> CollectGarbage(JobStore& jobs, const GarbagePlaces& places,
                                             const GarbageOptions& options, Time now,
                                             std::stop_token stop) {
  auto artifact_files = places.artifacts.ListAll("");
  if (!artifact_files.ok()) return artifact_files.status();
  std::vector<std::pair<Storage*, std::vector<StoredFile>>> uploads;
  for (Storage* storage : {&places.blobs, places.spool}) {
    if (storage == nullptr) continue;
    if (absl::Status status = StoppedBy(stop); !status.ok()) return status;
    auto files = storage->ListAll("");
    if (!files.ok()) return files.status();
    uploads.emplace_back(storage, *std::move(files));
  }
  auto needed = ReadNeeded(jobs, stop);
  if (!needed.ok()) return needed.status();
  Collector collector(options, now, std::move(stop));
  auto status = CollectTemporaries(places.artifacts, &collector, &*artifact_files);
  if (!status.ok()) return status;
  for (const auto& [prefix, attempt] : GroupByAttempt(*artifact_files)) {
    if (status = collector.Stopped(); !status.ok()) return status;
    if (needed->Needs(attempt)) continue;
    auto kept = IsArtifact(jobs, prefix, attempt);
    if (!kept.ok()) return kept.status();
    if (*kept) continue;
    collector.Failed(collector.Take(places.artifacts, prefix, attempt));
  }
  for (auto& [storage, files] : uploads) {
    status = CollectTemporaries(*storage, &collector, &files);
    if (status.ok()) status = CollectBlobs(*needed, *storage, files, &collector);
    if (!status.ok()) return status;
  }
  return collector.report();
}

absl::Status RemoveOldUploads(Storage& spool, Duration grace, Time now) {
  auto files = spool.List("");
  if (!files.ok()) return files.status();
  Collector collector({.grace = grace}, now, {});
  absl::Status status = CollectBlobs({}, spool, *files, &collector);
  return status.ok() ? collector.report().first_failure : status;
}

}  // namespace quantry::server
