// What workers send. The first byte says which message the rest is.
#include "quantry/v1/worker_service.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/violations.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry;
  if (size == 0) return 0;
  const uint8_t* rest = data + 1;
  const int length = static_cast<int>(size - 1);
  switch (data[0] % 4) {
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
      (void)server::LeaseFromProto(request.session(), request.job(), request.epoch()).ok();
      (void)server::CheckCheckpoint(request.checkpoint()).ok();
      server::Violations left_out;
      (void)server::EventsFromProto(request.event_offset(), request.events(), &left_out).ok();
      break;
    }
    case 3: {
      google::protobuf::Duration duration;
      if (!duration.ParseFromArray(rest, length)) break;
      const Duration once = server::FromProto(duration);
      if (server::FromProto(server::ToProto(once)) != once) __builtin_trap();
      break;
    }
  }
  return 0;
}
