#include "worker/agent/worker_metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <csignal>

#include "common/signal_name.h"
#include "worker/agent/job_series.h"

namespace quantry::agent {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

const prometheus::Histogram::BucketBoundaries kBlockSeconds = {0.05, 0.1, 0.25, 0.5, 1,   2.5, 5,
                                                               10,   30,  60,   120, 300, 600};

std::string SignalLabel(int signal) { return signal == 0 ? "none" : SignalName(signal); }

// GPU readings, taken when scraped.
class GpuSeries : public prometheus::Collectable {
 public:
  explicit GpuSeries(const GpuInventory& gpus) : gpus_(gpus) {}

  std::vector<MetricFamily> Collect() const override {
    auto memory = FamilyOf("quantry_worker_gpu_memory_used_bytes", "GPU memory in use.");
    auto use = FamilyOf("quantry_worker_gpu_utilization_ratio", "Share of time a kernel ran.");
    auto heat = FamilyOf("quantry_worker_gpu_temperature_celsius", "GPU core temperature.");
    auto energy = FamilyOf("quantry_worker_gpu_energy_joules_total",
                           "Energy used since the driver was loaded.", MetricType::Counter);
    for (const GpuReading& reading : gpus_.Read()) {
      const std::vector<ClientMetric::Label> gpu = {{"gpu", reading.uuid}};
      const auto add = [&](MetricFamily& family, double value) {
        if (value >= 0) family.metric.push_back(GaugeOf(gpu, value));
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

struct WorkerMetrics::State {
  State(int slots, std::string_view engine_version, const GpuInventory& gpus) : gpu_series(gpus) {
    slot_count.Add({}).Set(slots);
    busy.Set(0);
    build_info.Add({{"version", QUANTRY_VERSION}, {"engine", std::string(engine_version)}}).Set(1);
    // From 0, so that the first of each is seen as an increase.
    for (const int signal : {0, SIGKILL, SIGTERM, SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}) {
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
