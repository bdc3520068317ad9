#pragma once

#include "server/jobs/job_store.h"
#include "server/jobs/postgres/rows.h"

// The tenant side of JobStore. Reads are one statement each, so they see one
// snapshot; writes run inside the caller's transaction.
namespace quantry::server::postgres {

absl::StatusOr<Job> Get(Database& db, const JobKey& key);
absl::StatusOr<JobPage> List(Database& db, const ListQuery& query);
absl::StatusOr<EventBatch> Events(Database& db, const JobKey& key, int64_t after, int limit);
absl::StatusOr<Artifact> GetArtifact(Database& db, const std::string& tenant,
                                     const std::string& uid);
ArtifactPage ListArtifacts(Database& db, const std::string& tenant, int limit,
                           const std::optional<Cursor>& after);

absl::StatusOr<SubmitResult> Submit(const Context& context, const SubmitRequest& request);
absl::StatusOr<Job> Update(const Context& context, const UpdateRequest& request);
absl::StatusOr<Job> Cancel(const Context& context, const CancelRequest& request);
absl::StatusOr<Job> Retry(const Context& context, const RetryRequest& request);
absl::StatusOr<Job> Delete(const Context& context, const DeleteRequest& request);
// Without any check; the job must be locked. The sweeper's expiry uses it too.
void RemoveJob(Database& db, int64_t pk, Time now);

}  // namespace quantry::server::postgres
