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
#include "server/rpc/violations.h"

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
                                          int64_t epoch, const std::string& uid);
// Only a bad name makes a beat invalid. Whatever else is out of its bounds is left
// out and told in `left_out`: it is no reason to lose a lease. Events beyond
// what one call may bring are for the next one.
absl::StatusOr<Beat> FromProto(const v1::JobBeat& beat, Violations* left_out);
// Of the calls that end an attempt or commit a checkpoint. Each event keeps its
// number, so one of a kind that workers do not report stays for the store to
// pass over; of others what is out of bounds is left out.
absl::StatusOr<AttemptEvents> EventsFromProto(
    int64_t offset, const google::protobuf::RepeatedPtrField<v1::JobEvent>& events,
    Violations* left_out);
absl::Status CheckWorkerInfo(const v1::WorkerInfo& worker);
absl::Status CheckCheckpoint(const v1::CheckpointRef& checkpoint);

}  // namespace quantry::server
