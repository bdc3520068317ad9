#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "quantry/v1/worker_service.pb.h"
#include "worker/agent/gpu_inventory.h"
#include "worker/agent/job_session.h"

namespace quantry::agent {

// Everything a worker exports (spec/service.md §4). Series of a job exist only
// while this worker holds its lease, and for two scrapes more so that the last
// values are seen. Thread-safe.
class WorkerMetrics {
 public:
  // `gpus` must outlive this object.
  WorkerMetrics(int slots, std::string_view engine_version, const GpuInventory& gpus);
  ~WorkerMetrics();

  void JobStarted(const v1::Lease& lease, std::shared_ptr<const JobSession> session);
  void JobEnded(const JobSession& session);

  void BlockDone(std::string_view method, v1::Stage stage, double seconds);
  // 0 = ended by itself.
  void EngineExited(int signal);
  void BytesFetched(std::int64_t bytes);
  void BytesUploaded(std::int64_t bytes);

  // Prometheus text format.
  std::string Text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quantry::agent
