// WatchQuantizationJob: one stream of a job's life.
//
// Rules (spec/service.md §3.4): the snapshot first; stored events in order,
// read again from the store after the last one sent, so none is lost or
// repeated whatever happens to wake-ups; live progress latest-wins and never
// before an event stored earlier; keepalives; `end`, then OK. One write is
// outstanding at most and at most kWatchBatch events are held, so a stream
// takes the same memory whether its client reads or not. When the store does not
// answer, it is asked once more; then the stream ends with that error.
#pragma once

#include <grpcpp/grpcpp.h>

#include "quantry/v1/quantization_service.pb.h"
#include "server/rpc/service_context.h"

namespace quantry::server {

inline constexpr int kWatchBatch = 32;
// Open watches of one principal at most (spec/service.md §3.3).
inline constexpr int kWatchesOfOne = 200;
inline constexpr auto kWatchKeepalive = std::chrono::seconds(15);
inline constexpr auto kDefaultWatchInterval = std::chrono::milliseconds(200);

// The reactor owns itself.
grpc::ServerWriteReactor<v1::WatchQuantizationJobResponse>* StartWatch(
    const ServiceContext* context, grpc::CallbackServerContext* call,
    const v1::WatchQuantizationJobRequest& request);

}  // namespace quantry::server
