// The metrics of quantryd (spec/service.md §4.2), created once with every
// label value known beforehand, so each series is exported from zero.
// Thread-safe. Names follow gRFC A66 where one exists.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace quantry::server {

struct StoreStats;  // server/jobs/job_store.h

// One family of counters by the values of one or two labels. Values that were
// not named at construction are created on first use: only ever pass values
// from a fixed set.
class CounterVec {
 public:
  CounterVec(prometheus::Registry* registry, const std::string& name, const std::string& help,
             std::vector<std::string> labels);
  prometheus::Counter& With(const std::vector<std::string>& values);

 private:
  prometheus::Family<prometheus::Counter>* family_;
  std::vector<std::string> labels_;
};

class HistogramVec {
 public:
  HistogramVec(prometheus::Registry* registry, const std::string& name, const std::string& help,
               std::vector<std::string> labels, prometheus::Histogram::BucketBoundaries buckets);
  prometheus::Histogram& With(const std::vector<std::string>& values);

 private:
  prometheus::Family<prometheus::Histogram>* family_;
  std::vector<std::string> labels_;
  prometheus::Histogram::BucketBoundaries buckets_;
};

class GaugeVec {
 public:
  GaugeVec(prometheus::Registry* registry, const std::string& name, const std::string& help,
           std::vector<std::string> labels);
  prometheus::Gauge& With(const std::vector<std::string>& values);

 private:
  prometheus::Family<prometheus::Gauge>* family_;
  std::vector<std::string> labels_;
};

class ServerMetrics {
 private:
  // First: the members below register themselves here.
  std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<prometheus::Registry> queue_registry_;  // what SetQueue sets

 public:
  // `grpc_methods`: full names ("/quantry.v1.AdminService/ListWorkers").
  // `quantization_methods`: label values of `method`.
  ServerMetrics(const std::vector<std::string>& grpc_methods,
                const std::vector<std::string>& quantization_methods);

  // Text exposition format.
  std::string Render() const;

  // RPC
  CounterVec call_started;     // grpc_method
  HistogramVec call_duration;  // grpc_method, grpc_status
  // Queue
  GaugeVec jobs;  // state
  prometheus::Gauge& queue_depth;
  prometheus::Gauge& queue_held;
  prometheus::Gauge& queue_oldest_timestamp;
  prometheus::Gauge& queue_paused;
  prometheus::Gauge& workers_live;
  prometheus::Counter& jobs_submitted;
  CounterVec jobs_finished;  // method, outcome
  CounterVec result_cache;   // outcome: hit, joined, miss
  prometheus::Histogram& job_queue_seconds;
  HistogramVec job_run_seconds;  // method
  CounterVec job_attempts;       // outcome
  CounterVec engine_signals;     // signal
  prometheus::Counter& lease_expired;
  CounterVec stale_writes_rejected;  // op
  prometheus::Gauge& sweeper_last_run;
  // Streams
  prometheus::Gauge& watch_streams;
  CounterVec watch_events_sent;  // kind
  prometheus::Counter& watch_events_conflated;
  // Store
  HistogramVec store_op_seconds;  // op
  CounterVec store_errors;        // op, code
  prometheus::Gauge& store_dead_rows;
  prometheus::Gauge& store_oldest_snapshot_age;
  // Bytes
  CounterVec artifact_bytes;       // direction: upload, download
  CounterVec garbage_collections;  // outcome
  // Embedded agent
  prometheus::Counter& agent_restarts;
  CounterVec server_faults;  // grpc_method
  // Identity
  CounterVec calls_denied;        // code
  CounterVec audit_lines;         // outcome
  CounterVec credential_reloads;  // outcome
  GaugeVec credentials_usable;    // credential
  GaugeVec certificate_expiry;    // certificate

  // `now` by the clock that the store's times are of.
  void SetQueue(const StoreStats& stats, Time now);
  // The store does not say: series of the queue are left out until SetQueue. Of several servers
  // the others' count then, and no number of an hour ago.
  void ForgetQueue();
  void SetEngineVersion(const std::string& engine_version);

 private:
  GaugeVec build_info_;
  std::atomic<bool> queue_known_ = true;
};

// "NOT_FOUND", as label value and in logs.
std::string StatusName(absl::StatusCode code);
// Every code, in numeric order.
const std::vector<absl::StatusCode>& AllStatusCodes();

// The ops of JobStore, as metric label values.
const std::vector<std::string>& StoreOps();

double ToSeconds(Duration duration);

// Since 1970 by the machine's clock, as whoever scrapes has it; a store's may be another.
double WallSeconds();

}  // namespace quantry::server
