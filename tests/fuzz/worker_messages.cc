// What workers send. The first byte says which message the rest is.
#include "common/digest.h"
#include "common/utf8_prefix.h"
#include "quantry/v1/worker_service.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/violations.h"

namespace {

using namespace quantry;

template <class Request>
void TakeLease(const Request& request) {
  const auto lease =
      server::LeaseFromProto(request.session(), request.job(), request.epoch(), request.job_uid());
  if (lease.ok() && lease->job.tenant.empty()) __builtin_trap();
}

template <class Request>
void TakeEvents(const Request& request) {
  server::Violations left_out;
  (void)server::EventsFromProto(request.event_offset(), request.events(), &left_out).ok();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t* rest = data + 1;
  const int length = static_cast<int>(size - 1);
  switch (data[0] % 8) {
    case 0: {
      v1::HeartbeatRequest request;
      if (!request.ParseFromArray(rest, length)) break;
      for (const auto& beat : request.jobs()) {
        server::Violations left_out;
        (void)server::FromProto(beat, &left_out).ok();
      }
      break;
    }
    case 1: {
      v1::RegisterWorkerRequest request;
      if (request.ParseFromArray(rest, length)) {
        (void)server::CheckWorkerInfo(request.worker()).ok();
      }
      break;
    }
    case 2: {
      v1::CommitCheckpointRequest request;
      if (!request.ParseFromArray(rest, length)) break;
      TakeLease(request);
      (void)server::CheckCheckpoint(request.checkpoint()).ok();
      TakeEvents(request);
      break;
    }
    case 3: {
      google::protobuf::Duration duration;
      if (!duration.ParseFromArray(rest, length)) break;
      const Duration once = server::FromProto(duration);
      if (server::FromProto(server::ToProto(once)) != once) __builtin_trap();
      break;
    }
    case 4: {
      v1::AcquireJobRequest request;
      if (request.ParseFromArray(rest, length)) (void)server::FromProto(request.wait());
      break;
    }
    case 5: {
      v1::CompleteJobRequest request;
      if (!request.ParseFromArray(rest, length)) break;
      TakeLease(request);
      (void)IsSha256Hex(request.manifest_sha256());
      TakeEvents(request);
      break;
    }
    case 6: {
      v1::FailJobRequest request;
      if (!request.ParseFromArray(rest, length)) break;
      TakeLease(request);
      TakeEvents(request);
      break;
    }
    case 7: {
      v1::ReleaseJobRequest request;
      if (!request.ParseFromArray(rest, length)) break;
      TakeLease(request);
      if (Utf8Prefix(request.reason(), 1024).size() > 1024) __builtin_trap();
      break;
    }
  }
  return 0;
}
