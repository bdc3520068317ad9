// Domain types onto the wire, and what workers send off it. Tenant requests
// come in through validation.h. Pure.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "quantry/v1/admin_service.pb.h"
#include "quantry/v1/artifact.pb.h"
#include "quantry/v1/job.pb.h"
#include "quantry/v1/worker_service.pb.h"
#include "server/jobs/job.h"
#include "server/jobs/job_store.h"

namespace quantry::server {

google::protobuf::Timestamp ToProto(Time time);
google::protobuf::Duration ToProto(Duration duration);
// Saturates at what Duration holds.
Duration FromProto(const google::protobuf::Duration& duration);

// `artifact_uri` of the result is what the store has.
v1::QuantizationJob ToProto(const Job& job);
v1::Artifact ToProto(const Artifact& artifact);
v1::WorkerStatus ToProto(const Worker& worker);
v1::QueueStats ToProto(const StoreStats& stats);
v1::HeartbeatResponse ToProto(const HeartbeatReply& reply);

// INVALID_ARGUMENT when something is out of its bounds.
absl::StatusOr<LeaseToken> LeaseFromProto(const std::string& session, const std::string& job,
                                          int64_t epoch);
absl::StatusOr<Beat> FromProto(const v1::JobBeat& beat);
absl::StatusOr<AttemptEvents> EventsFromProto(
    int64_t offset, const google::protobuf::RepeatedPtrField<v1::JobEvent>& events);
absl::Status CheckWorkerInfo(const v1::WorkerInfo& worker);
absl::Status CheckCheckpoint(const v1::CheckpointRef& checkpoint);

}  // namespace quantry::server
