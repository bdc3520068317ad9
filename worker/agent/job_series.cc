#include "worker/agent/job_series.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstring>
#include <iterator>
#include <string_view>
#include <utility>

#include "common/ids.h"
#include "common/utf8_prefix.h"
#include "google/protobuf/util/time_util.h"

namespace quantry::agent {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr int kScrapesAfterEnd = 2;
// Ended jobs nobody scrapes are forgotten beyond this number.
constexpr std::size_t kMaxEnded = 64;

// What the model is called on a dashboard; never a long or secret text.
std::string ModelLabel(const v1::ModelSource& source) {
  std::string name = "upload";
  if (source.has_local_path()) name = source.local_path();
  if (source.has_uri()) name = source.uri().substr(0, source.uri().find('?'));
  while (name.ends_with('/')) name.pop_back();
  return Utf8Prefix(std::string_view(name).substr(name.rfind('/') + 1), 64);
}

double SecondsFromNow(const google::protobuf::Duration& eta) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return now + static_cast<double>(google::protobuf::util::TimeUtil::DurationToMilliseconds(eta)) /
                   1000.0;
}

// Figures of learned rounding among the engine's metrics of the moment.
struct Figure {
  const char* metric;
  const char* name;
  const char* help;
};
constexpr Figure kFigures[] = {
    {"stage", "quantry_job_rounding_stage", "Stage of hardening the block is in, from 1."},
    {"stages", "quantry_job_rounding_stages", "Stages of hardening a block takes."},
    {"stage_step", "quantry_job_rounding_stage_steps_done", "Steps of the stage that are done."},
    {"stage_steps", "quantry_job_rounding_stage_steps", "Steps the stage takes."},
    {"loss_soft", "quantry_job_soft_loss",
     "Mean training loss of the last finished stage, roundings still soft."},
    {"loss_hard", "quantry_job_hard_loss",
     "Loss after that stage, had every rounding been decided, on the first batch."},
    {"hard_fraction", "quantry_job_hardened_ratio",
     "Share of the block's roundings that are decided."},
    {"flip_ratio", "quantry_job_flip_ratio",
     "Share of the block's integers that differ from rounding to nearest."},
    {"block_seconds", "quantry_job_block_seconds", "Time the last finished block took."},
};

// Bytes that move while no step is done, which are progress too (server/jobs/rules.cc).
struct Moved {
  const char* metric;
  const char* what;
};
constexpr Moved kMoved[] = {{"fetched_bytes", "fetched"},
                            {"restored_bytes", "restored"},
                            {"loaded_bytes", "loaded"},
                            {"uploaded_bytes", "uploaded"}};

}  // namespace

struct JobSeries::Families {
  MetricFamily info =
      FamilyOf("quantry_job_info", "A job whose lease this worker holds; always 1.");
  MetricFamily stage = FamilyOf("quantry_job_stage", "Stage the job is in; always 1.");
  MetricFamily ratio =
      FamilyOf("quantry_job_progress_ratio", "Share of the whole job that is done, 0 to 1.");
  MetricFamily blocks_done =
      FamilyOf("quantry_job_blocks_done", "Blocks of the job that are quantized.");
  MetricFamily blocks = FamilyOf("quantry_job_blocks", "Blocks the job's model has.");
  MetricFamily steps_done =
      FamilyOf("quantry_job_steps_done", "Steps of the attempt that are done.");
  MetricFamily steps = FamilyOf("quantry_job_steps", "Steps the attempt takes.");
  MetricFamily loss =
      FamilyOf("quantry_job_block_loss", "Loss of the last finished block, after the method.");
  MetricFamily loss_before = FamilyOf("quantry_job_block_loss_before",
                                      "Loss of the last finished block, rounded to nearest.");
  MetricFamily memory = FamilyOf("quantry_job_peak_memory_bytes",
                                 "Largest memory of the job's engine, on the host and on the GPU.");
  MetricFamily moved =
      FamilyOf("quantry_job_moved_bytes",
               "Bytes of inputs fetched, of checkpoints restored, of inputs loaded by the engine, "
               "and of the artifact uploaded.");
  MetricFamily end =
      FamilyOf("quantry_job_estimated_end_timestamp_seconds",
               "When the job will end as far as its first blocks tell, in Unix time.");

  // In the order of kFigures.
  std::vector<MetricFamily> figures = [] {
    std::vector<MetricFamily> all;
    for (const Figure& figure : kFigures) all.push_back(FamilyOf(figure.name, figure.help));
    return all;
  }();

  std::vector<MetricFamily> All() && {
    std::vector<MetricFamily> all = std::move(figures);
    for (MetricFamily* family : {&info, &stage, &ratio, &blocks_done, &blocks, &steps_done, &steps,
                                 &loss, &loss_before, &memory, &moved, &end}) {
      all.push_back(std::move(*family));
    }
    return all;
  }
};

void JobSeries::Add(const v1::Lease& lease, std::shared_ptr<const JobSession> session) {
  Entry entry;
  entry.scrapes_left = kScrapesAfterEnd;
  entry.session = std::move(session);
  const auto name = ParseJobName(lease.job());
  entry.job_id = name.ok() ? name->id : lease.job();
  entry.tenant = name.ok() ? name->tenant : "";
  entry.model = ModelLabel(lease.spec().model());
  entry.method = MethodName(lease.spec().method());
  const std::lock_guard lock(mutex_);
  // A new lease of the same job replaces what is left of the old one.
  std::erase_if(entries_, [&](const Entry& e) {
    return e.job_id == entry.job_id && e.tenant == entry.tenant && e.ended;
  });
  entries_.push_back(std::move(entry));
}

void JobSeries::End(const JobSession& session) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) entry.ended = entry.ended || entry.session.get() == &session;
  const auto ended = std::count_if(entries_.begin(), entries_.end(),
                                   [](const Entry& entry) { return entry.ended; });
  if (static_cast<std::size_t>(ended) <= kMaxEnded) return;
  entries_.erase(std::find_if(entries_.begin(), entries_.end(),
                              [](const Entry& entry) { return entry.ended; }));
}

std::vector<MetricFamily> JobSeries::Collect() const {
  Families families;
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    AddFacts(entry, families);
    AddProgress(entry, families);
    if (entry.ended) --entry.scrapes_left;
  }
  std::erase_if(entries_, [](const Entry& entry) { return entry.scrapes_left <= 0; });
  return std::move(families).All();
}

void JobSeries::AddFacts(const Entry& entry, Families& families) {
  families.info.metric.push_back(GaugeOf({{"job_id", entry.job_id},
                                          {"tenant", entry.tenant},
                                          {"model", entry.model},
                                          {"method", entry.method}},
                                         1));
}

void JobSeries::AddProgress(const Entry& entry, Families& families) {
  const v1::JobProgress progress = entry.session->progress();
  const auto add = [&](MetricFamily& family, double value,
                       const std::vector<ClientMetric::Label>& more = {}) {
    std::vector<ClientMetric::Label> labels = {{"job_id", entry.job_id}, {"tenant", entry.tenant}};
    labels.insert(labels.end(), more.begin(), more.end());
    family.metric.push_back(GaugeOf(std::move(labels), value));
  };
  if (progress.stage() != v1::STAGE_UNSPECIFIED && !entry.ended) {
    add(families.stage, 1, {{"stage", StageLabel(progress.stage())}});
  }
  add(families.ratio, progress.ratio());
  add(families.blocks_done, progress.blocks_done());
  add(families.blocks, progress.blocks_total());
  add(families.steps_done, static_cast<double>(progress.steps_done()));
  add(families.steps, static_cast<double>(progress.steps_total()));
  if (progress.blocks_done() > 0) {
    add(families.loss, progress.loss_after());
    add(families.loss_before, progress.loss_before());
  }
  const std::pair<const char*, std::int64_t> memories[] = {{"host", progress.peak_rss_bytes()},
                                                           {"gpu", progress.device_memory_bytes()}};
  for (const auto& [memory, bytes] : memories) {
    add(families.memory, static_cast<double>(bytes), {{"memory", memory}});
  }
  for (const Moved& moved : kMoved) {
    const auto found = progress.metrics().find(moved.metric);
    if (found != progress.metrics().end()) {
      add(families.moved, found->second, {{"moved", moved.what}});
    }
  }
  for (std::size_t i = 0; i < std::size(kFigures); ++i) {
    const auto found = progress.metrics().find(kFigures[i].metric);
    if (found != progress.metrics().end()) add(families.figures[i], found->second);
  }
  if (progress.has_eta() && !entry.ended) add(families.end, SecondsFromNow(progress.eta()));
}

std::string MethodName(const v1::Method& method) {
  const auto* oneof = v1::Method::descriptor()->FindOneofByName("kind");
  const auto* field = method.GetReflection()->GetOneofFieldDescriptor(method, oneof);
  return field == nullptr ? "unknown" : field->name();
}

std::string StageLabel(v1::Stage stage) {
  std::string name = v1::Stage_Name(stage);  // "STAGE_QUANTIZING"
  name = name.substr(std::min(name.size(), std::strlen("STAGE_")));
  std::transform(name.begin(), name.end(), name.begin(), [](char c) { return std::tolower(c); });
  return name;
}

ClientMetric GaugeOf(std::vector<ClientMetric::Label> labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  return metric;
}

MetricFamily FamilyOf(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

}  // namespace quantry::agent
