#pragma once

#include <prometheus/client_metric.h>
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/job_session.h"

namespace quantry::agent {

// The series of held leases (spec/service.md §4.3), built at scrape time from
// what the sessions know: bounded by the slots, gone two scrapes after the
// job's end. Each has job_id and tenant, since an id is one of its tenant's.
// Thread-safe.
class JobSeries : public prometheus::Collectable {
 public:
  void Add(const v1::Lease& lease, std::shared_ptr<const JobSession> session);
  void End(const JobSession& session);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct Entry {
    std::string job_id, tenant, model, method;
    std::shared_ptr<const JobSession> session;
    bool ended = false;
    int scrapes_left = 0;
  };
  struct Families;

  static void AddFacts(const Entry& entry, Families& families);
  static void AddProgress(const Entry& entry, Families& families);

  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;
};

// "awq" for a Method with awq set; "unknown" when nothing known is.
std::string MethodName(const v1::Method& method);
// "quantizing" for STAGE_QUANTIZING.
std::string StageLabel(v1::Stage stage);

prometheus::ClientMetric GaugeOf(std::vector<prometheus::ClientMetric::Label> labels, double value);
prometheus::MetricFamily FamilyOf(const char* name, const char* help,
                                  prometheus::MetricType type = prometheus::MetricType::Gauge);

}  // namespace quantry::agent
