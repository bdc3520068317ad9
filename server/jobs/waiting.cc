#include "server/jobs/waiting.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "google/protobuf/util/time_util.h"

namespace quantry::server {
namespace {

constexpr std::string_view kPrefix = "waiting: ";
constexpr const char* kWaitsForItsTurn = "a worker takes the job when its turn comes";
constexpr size_t kMaxReasonsNamed = 3;

std::string Mebibytes(int64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

std::string WhyNotByGpus(const JobNeeds& needs, const v1::WorkerInfo& worker) {
  if (needs.gpu_count == 0) return "";
  if (needs.gpu_count > worker.gpus_size()) {
    return "has " + std::to_string(worker.gpus_size()) + " GPUs, the job asks for " +
           std::to_string(needs.gpu_count);
  }
  std::vector<int64_t> memory;
  for (const v1::Gpu& gpu : worker.gpus()) memory.push_back(gpu.memory_bytes());
  std::sort(memory.rbegin(), memory.rend());
  const int64_t smallest = memory[static_cast<size_t>(needs.gpu_count) - 1];
  if (smallest >= needs.min_gpu_memory_bytes) return "";
  return "has GPUs of " + Mebibytes(smallest) + ", the job asks for " +
         Mebibytes(needs.min_gpu_memory_bytes);
}

}  // namespace

std::string WhyNot(const JobNeeds& needs, const Worker& worker) {
  if (worker.draining) return "is draining";
  if (!worker.refusal.empty()) return "takes no jobs: " + worker.refusal;
  const auto& methods = worker.info.methods();
  if (std::find(methods.begin(), methods.end(), needs.method) == methods.end()) {
    return "does not offer the method " + needs.method;
  }
  const int64_t memory = worker.info.host_memory_bytes();
  if (memory > 0 && needs.host_memory_bytes > memory) {
    return "has " + Mebibytes(memory) + " of memory, the job asks for " +
           Mebibytes(needs.host_memory_bytes);
  }
  return WhyNotByGpus(needs, worker.info);
}

std::string WhyWaiting(const JobNeeds& needs, std::span<const Worker> live) {
  if (live.empty()) return std::string(kPrefix) + "no worker is connected";
  // No names and no numbers of workers: those come and go.
  std::set<std::string> reasons;
  for (const Worker& worker : live) {
    std::string why = WhyNot(needs, worker);
    if (why.empty()) return "";
    reasons.insert(std::move(why));
  }
  if (reasons.size() == 1) return std::string(kPrefix) + "each worker " + *reasons.begin();
  std::string text(kPrefix);
  size_t named = 0;
  for (const std::string& why : reasons) {
    if (named == kMaxReasonsNamed) return text + "; others have other reasons";
    text += (named++ == 0 ? "a worker " : "; another ") + why;
  }
  return text;
}

std::string WaitsForResume(const QueuePause& pause) {
  return std::string(kPrefix) + "the queue is paused" +
         (pause.reason.empty() ? "" : ": " + pause.reason);
}

std::string WaitsForQuota() {
  return std::string(kPrefix) + "the tenant runs as many jobs as its quota allows";
}

std::string WaitsForResultOf(const JobKey& source) {
  return std::string(kPrefix) + FormatJobName(source.tenant, source.id) +
         " has the same spec; its result will be taken";
}

bool IsWaitingReason(std::string_view state_reason) { return state_reason.starts_with(kPrefix); }

v1::JobEvent WaitingEvent(const std::string& reason) {
  v1::JobEvent event;
  event.mutable_log()->set_level(reason.empty() ? v1::LogLine::LEVEL_INFO
                                                : v1::LogLine::LEVEL_WARNING);
  event.mutable_log()->set_message(reason.empty() ? kWaitsForItsTurn : reason);
  return event;
}

bool ToldLately(const v1::JobEvent& last, const JobPolicy& policy, Time now) {
  using google::protobuf::util::TimeUtil;
  const std::string& message = last.log().message();
  if (!IsWaitingReason(message) && message != kWaitsForItsTurn) return false;
  return FromUnixMicros(TimeUtil::TimestampToMicroseconds(last.time())) +
             policy.tell_waiting_again_after >
         now;
}

}  // namespace quantry::server
