#include "server/artifacts/garbage_collector.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <random>
#include <string_view>
#include <utility>

#include "common/errors.h"
#include "common/log.h"
#include "common/storage.h"
#include "server/artifacts/root_owner.h"

namespace quantry::server {
namespace {

constexpr std::string_view kBegan = "quantry-garbage";
// A server that is restarted more often than this never collects by itself.
constexpr Duration kLongestLook = std::chrono::minutes(10);

Duration NextLook(Duration interval) {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  const Duration mean = std::min<Duration>(interval / 10, kLongestLook);
  const double spread = std::uniform_real_distribution<>(0.5, 1.5)(random);
  return std::chrono::duration_cast<Duration>(mean * spread);
}

}  // namespace

absl::StatusOr<GarbageCollector::Roots> GarbageCollector::ClaimedRoots(bool dry_run) const {
  auto artifacts = OpenStorage(artifacts_->RootUri());
  if (!artifacts.ok()) return artifacts.status();
  auto blobs = OpenStorage(blobs_->RootUri());
  if (!blobs.ok()) return blobs.status();
  Roots roots{*std::move(artifacts), *std::move(blobs)};
  if (store_id_.empty()) return roots;
  absl::Status claimed = ClaimRoot(*roots.artifacts, artifacts_->RootUri(), store_id_, dry_run);
  if (!claimed.ok()) return claimed;
  claimed = ClaimRoot(*roots.blobs, blobs_->RootUri(), store_id_, dry_run);
  if (!claimed.ok()) return claimed;
  return roots;
}

absl::Status GarbageCollector::Claim() {
  return store_id_.empty() ? absl::OkStatus() : ClaimedRoots(/*dry_run=*/false).status();
}

absl::StatusOr<std::unique_lock<std::mutex>> GarbageCollector::TakeTurn() {
  std::unique_lock turn(collecting_, std::try_to_lock);
  if (turn.owns_lock()) return turn;
  return MakeDetailedError(Reason::kResourceLimit, "another collection runs; wait for its end",
                           {.retry_after = std::chrono::seconds(10)});
}

absl::StatusOr<GarbageReport> GarbageCollector::Collect(const GarbageOptions& options,
                                                        std::stop_token stop) {
  const auto turn = TakeTurn();
  if (!turn.ok()) return turn.status();
  const auto roots = ClaimedRoots(options.dry_run);
  if (!roots.ok()) return roots.status();
  return CollectIn(*roots, options, std::move(stop));
}

absl::StatusOr<GarbageReport> GarbageCollector::CollectIn(const Roots& roots,
                                                          const GarbageOptions& options,
                                                          std::stop_token stop) {
  std::unique_ptr<Storage> spool;
  if (const std::string uri = blobs_->SpoolUri(); !uri.empty()) {
    auto opened = OpenStorage(uri);
    if (!opened.ok()) return opened.status();
    spool = *std::move(opened);
  }
  auto report = CollectGarbage(*jobs_, {*roots.artifacts, *roots.blobs, spool.get()}, options,
                               clock_->Now(), std::move(stop));
  if (report.ok()) {
    log::Info("garbage collected", {{"dry_run", options.dry_run},
                                    {"objects", report->objects},
                                    {"bytes", report->bytes},
                                    {"failures", report->failures}});
    if (report->failures > 0) {
      log::Warning("garbage cannot be removed",
                   {{"objects_or_prefixes", report->failures},
                    {"first_error", std::string(report->first_failure.message())}});
    }
  }
  return report;
}

absl::Status GarbageCollector::CleanSpool() {
  const std::string uri = blobs_->SpoolUri();
  if (uri.empty()) return absl::OkStatus();
  auto spool = OpenStorage(uri);
  if (!spool.ok()) return spool.status();
  return RemoveOldUploads(**spool, GarbageOptions().grace, clock_->Now());
}

absl::StatusOr<bool> GarbageCollector::IsDue(Duration interval) const {
  const auto root = OpenStorage(artifacts_->RootUri());
  if (!root.ok()) return root.status();
  const auto began = (*root)->Stat(kBegan);
  if (!began.ok()) return began.status();
  return !began->has_value() || clock_->Now() - (*began)->modified >= interval;
}

absl::StatusOr<std::optional<GarbageReport>> GarbageCollector::CollectIfDue(Duration interval,
                                                                            std::stop_token stop) {
  if (absl::Status status = CleanSpool(); !status.ok()) return status;
  const auto due = IsDue(interval);
  if (!due.ok()) return due.status();
  if (!*due) return std::nullopt;
  const auto turn = TakeTurn();
  if (!turn.ok()) return turn.status();
  // First: a mark in another job store's root would take its turn away.
  const auto roots = ClaimedRoots(/*dry_run=*/false);
  if (!roots.ok()) return roots.status();
  // Before it collects, so that another server's look finds it.
  Storage& root = *roots->artifacts;
  absl::Status marked = root.Write(kBegan, "A collection of garbage began at this time.\n");
  if (!marked.ok()) return marked;
  auto report = CollectIn(*roots, {}, std::move(stop));
  if (!report.ok()) {
    root.Delete(kBegan).IgnoreError();  // due again
    return report.status();
  }
  return *report;
}

void GarbageCollector::Run(Duration interval, const OnCollected& on_collected,
                           std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    stopped.wait_for(lock, stop, NextLook(interval), [] { return false; });
    if (stop.stop_requested()) return;
    auto report = CollectIfDue(interval, stop);
    if (!report.ok()) {
      on_collected(report.status());
    } else if (report->has_value()) {
      on_collected(**report);
    }
  }
}

}  // namespace quantry::server
