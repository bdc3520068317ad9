#include "worker/agent/worker_metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <csignal>
#include <cstring>
#include <mutex>

#include "common/ids.h"
#include "google/protobuf/util/time_util.h"

namespace quantry::agent {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

const prometheus::Histogram::BucketBoundaries kBlockSeconds = {0.05, 0.1, 0.25, 0.5, 1,   2.5, 5,
                                                               10,   30,  60,   120, 300, 600};
constexpr int kScrapesAfterEnd = 2;
// Ended jobs nobody scrapes are forgotten beyond this number.
constexpr std::size_t kMaxEnded = 64;

std::string StageLabel(v1::Stage stage) {
  std::string name = v1::Stage_Name(stage);  // "STAGE_QUANTIZING"
  name = name.substr(std::min(name.size(), std::strlen("STAGE_")));
  std::transform(name.begin(), name.end(), name.begin(), [](char c) { return std::tolower(c); });
  return name;
}

std::string SignalLabel(int signal) {
  if (signal == 0) return "none";
  const char* name = sigabbrev_np(signal);
  return name == nullptr ? std::to_string(signal) : std::string("SIG") + name;
}

// What the model is called on a dashboard; never a long or secret text.
std::string ModelLabel(const v1::ModelSource& source) {
  std::string name = "upload";
  if (source.has_local_path()) name = source.local_path();
  if (source.has_uri()) name = source.uri().substr(0, source.uri().find('?'));
  while (name.ends_with('/')) name.pop_back();
  return name.substr(name.rfind('/') + 1).substr(0, 64);
}

ClientMetric Gauge(std::vector<ClientMetric::Label> labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  return metric;
}

MetricFamily Family(const char* name, const char* help, MetricType type = MetricType::Gauge) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

double SecondsFromNow(const google::protobuf::Duration& eta) {
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return now + static_cast<double>(google::protobuf::util::TimeUtil::DurationToMilliseconds(eta)) /
                   1000.0;
}

// The series of held leases, built at scrape time from what the sessions know.
class JobSeries : public prometheus::Collectable {
 public:
  void Add(const v1::Lease& lease, std::shared_ptr<const JobSession> session) {
    Entry entry;
    entry.session = std::move(session);
    const auto name = ParseJobName(lease.job());
    entry.job_id = name.ok() ? name->id : lease.job();
    entry.tenant = name.ok() ? name->tenant : "";
    entry.model = ModelLabel(lease.spec().model());
    entry.method = MethodName(lease.spec().method());
    const std::lock_guard lock(mutex_);
    // A new lease of the same job replaces what is left of the old one.
    std::erase_if(entries_, [&](const Entry& e) { return e.job_id == entry.job_id && e.ended; });
    entries_.push_back(std::move(entry));
  }

  void End(const JobSession& session) {
    const std::lock_guard lock(mutex_);
    for (Entry& entry : entries_) entry.ended = entry.ended || entry.session.get() == &session;
    const auto ended = std::count_if(entries_.begin(), entries_.end(),
                                     [](const Entry& entry) { return entry.ended; });
    if (static_cast<std::size_t>(ended) <= kMaxEnded) return;
    entries_.erase(std::find_if(entries_.begin(), entries_.end(),
                                [](const Entry& entry) { return entry.ended; }));
  }

  std::vector<MetricFamily> Collect() const override {
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

 private:
  struct Entry {
    std::string job_id, tenant, model, method;
    std::shared_ptr<const JobSession> session;
    bool ended = false;
    int scrapes_left = kScrapesAfterEnd;
  };

  struct Families {
    MetricFamily info =
        Family("quantry_job_info", "A job whose lease this worker holds; always 1.");
    MetricFamily stage = Family("quantry_job_stage", "Stage the job is in; always 1.");
    MetricFamily ratio =
        Family("quantry_job_progress_ratio", "Share of the whole job that is done, 0 to 1.");
    MetricFamily blocks_done =
        Family("quantry_job_blocks_done", "Blocks of the job that are quantized.");
    MetricFamily blocks = Family("quantry_job_blocks", "Blocks the job's model has.");
    MetricFamily steps_done =
        Family("quantry_job_steps_done", "Steps of the attempt that are done.");
    MetricFamily steps = Family("quantry_job_steps", "Steps the attempt takes.");
    MetricFamily loss =
        Family("quantry_job_block_loss", "Loss of the last finished block, after the method.");
    MetricFamily loss_before = Family("quantry_job_block_loss_before",
                                      "Loss of the last finished block, rounded to nearest.");
    MetricFamily memory = Family("quantry_job_peak_memory_bytes",
                                 "Largest memory of the job's engine, on the host and on the GPU.");
    MetricFamily end =
        Family("quantry_job_estimated_end_timestamp_seconds",
               "When the job will end as far as its first blocks tell, in Unix time.");

    std::vector<MetricFamily> All() && {
      std::vector<MetricFamily> all;
      for (MetricFamily* family : {&info, &stage, &ratio, &blocks_done, &blocks, &steps_done,
                                   &steps, &loss, &loss_before, &memory, &end}) {
        all.push_back(std::move(*family));
      }
      return all;
    }
  };

  static void AddFacts(const Entry& entry, Families& families) {
    families.info.metric.push_back(Gauge({{"job_id", entry.job_id},
                                          {"tenant", entry.tenant},
                                          {"model", entry.model},
                                          {"method", entry.method}},
                                         1));
  }

  static void AddProgress(const Entry& entry, Families& families) {
    const v1::JobProgress progress = entry.session->progress();
    const auto add = [&](MetricFamily& family, double value,
                         std::vector<ClientMetric::Label> more = {}) {
      more.insert(more.begin(), {"job_id", entry.job_id});
      family.metric.push_back(Gauge(std::move(more), value));
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
    const std::pair<const char*, std::int64_t> memories[] = {
        {"host", progress.peak_rss_bytes()}, {"gpu", progress.device_memory_bytes()}};
    for (const auto& [memory, bytes] : memories) {
      add(families.memory, static_cast<double>(bytes), {{"memory", memory}});
    }
    if (progress.has_eta() && !entry.ended) add(families.end, SecondsFromNow(progress.eta()));
  }

  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;
};

// GPU readings, taken when scraped.
class GpuSeries : public prometheus::Collectable {
 public:
  explicit GpuSeries(const GpuInventory& gpus) : gpus_(gpus) {}

  std::vector<MetricFamily> Collect() const override {
    auto memory = Family("quantry_worker_gpu_memory_used_bytes", "GPU memory in use.");
    auto use = Family("quantry_worker_gpu_utilization_ratio", "Share of time a kernel ran.");
    auto heat = Family("quantry_worker_gpu_temperature_celsius", "GPU core temperature.");
    auto energy = Family("quantry_worker_gpu_energy_joules_total",
                         "Energy used since the driver was loaded.", MetricType::Counter);
    for (const GpuReading& reading : gpus_.Read()) {
      const std::vector<ClientMetric::Label> gpu = {{"gpu", reading.uuid}};
      const auto add = [&](MetricFamily& family, double value) {
        if (value >= 0) family.metric.push_back(Gauge(gpu, value));
      };
      add(memory, static_cast<double>(reading.memory_used_bytes));
      add(use, reading.utilization_ratio);
      add(heat, reading.temperature_celsius);
      if (reading.energy_joules < 0) continue;
      ClientMetric counter;
      counter.label = gpu;
      counter.counter.value = reading.energy_joules;
      energy.metric.push_back(std::move(counter));
    }
    std::vector<MetricFamily> families;
    for (MetricFamily* family : {&memory, &use, &heat, &energy}) {
      if (!family->metric.empty()) families.push_back(std::move(*family));
    }
    return families;
  }

 private:
  const GpuInventory& gpus_;
};

}  // namespace

std::string MethodName(const v1::Method& method) {
  const auto* oneof = v1::Method::descriptor()->FindOneofByName("kind");
  const auto* field = method.GetReflection()->GetOneofFieldDescriptor(method, oneof);
  return field == nullptr ? "unknown" : field->name();
}

struct WorkerMetrics::State {
  State(int slots, std::string_view engine_version, const GpuInventory& gpus) : gpu_series(gpus) {
    slot_count.Add({}).Set(slots);
    busy.Set(0);
    build_info.Add({{"version", QUANTRY_VERSION}, {"engine", std::string(engine_version)}}).Set(1);
    for (const int signal : {0, SIGKILL, SIGTERM, SIGSEGV, SIGABRT}) {
      exits.Add({{"signal", SignalLabel(signal)}});
    }
  }

  prometheus::Registry registry;
  prometheus::Family<prometheus::Gauge>& slot_count =
      prometheus::BuildGauge()
          .Name("quantry_worker_slots")
          .Help("Jobs this worker can run at a time.")
          .Register(registry);
  prometheus::Gauge& busy = prometheus::BuildGauge()
                                .Name("quantry_worker_busy")
                                .Help("Jobs this worker runs now.")
                                .Register(registry)
                                .Add({});
  prometheus::Family<prometheus::Gauge>& build_info =
      prometheus::BuildGauge()
          .Name("quantry_build_info")
          .Help("Versions of this process; always 1.")
          .Register(registry);
  prometheus::Family<prometheus::Histogram>& block_seconds =
      prometheus::BuildHistogram()
          .Name("quantry_worker_block_seconds")
          .Help("Time the engine took for one block.")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& exits =
      prometheus::BuildCounter()
          .Name("quantry_worker_engine_exits_total")
          .Help("Ended engines by the signal that ended them; none = by itself.")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& bytes =
      prometheus::BuildCounter()
          .Name("quantry_artifact_bytes_total")
          .Help("Bytes of inputs, checkpoints and artifacts moved by this process.")
          .Register(registry);
  prometheus::Counter& fetched = bytes.Add({{"direction", "download"}});
  prometheus::Counter& uploaded = bytes.Add({{"direction", "upload"}});
  JobSeries jobs;
  GpuSeries gpu_series;
};

WorkerMetrics::WorkerMetrics(int slots, std::string_view engine_version, const GpuInventory& gpus)
    : state_(std::make_unique<State>(slots, engine_version, gpus)) {}

WorkerMetrics::~WorkerMetrics() = default;

void WorkerMetrics::JobStarted(const v1::Lease& lease, std::shared_ptr<const JobSession> session) {
  state_->busy.Increment();
  state_->jobs.Add(lease, std::move(session));
}

void WorkerMetrics::JobEnded(const JobSession& session) {
  state_->busy.Decrement();
  state_->jobs.End(session);
}

void WorkerMetrics::BlockDone(std::string_view method, v1::Stage stage, double seconds) {
  state_->block_seconds
      .Add({{"method", std::string(method)}, {"stage", StageLabel(stage)}}, kBlockSeconds)
      .Observe(seconds);
}

void WorkerMetrics::EngineExited(int signal) {
  state_->exits.Add({{"signal", SignalLabel(signal)}}).Increment();
}

void WorkerMetrics::BytesFetched(std::int64_t bytes) {
  state_->fetched.Increment(static_cast<double>(bytes));
}

void WorkerMetrics::BytesUploaded(std::int64_t bytes) {
  state_->uploaded.Increment(static_cast<double>(bytes));
}

std::string WorkerMetrics::Text() const {
  std::vector<MetricFamily> families = state_->registry.Collect();
  for (const prometheus::Collectable* more :
       {static_cast<const prometheus::Collectable*>(&state_->jobs),
        static_cast<const prometheus::Collectable*>(&state_->gpu_series)}) {
    for (MetricFamily& family : more->Collect()) families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace quantry::agent
