#pragma once

#include "server/jobs/job_store.h"
#include "server/jobs/policy.h"
#include "server/jobs/sqlite/database.h"

// The tenant side of JobStore, each inside the caller's transaction.
namespace quantry::server::sqlite {

absl::StatusOr<SubmitResult> Submit(Database& db, const JobPolicy& policy,
                                    const SubmitRequest& request, Time now);
absl::StatusOr<Job> Get(Database& db, const JobKey& key);
absl::StatusOr<JobPage> List(Database& db, const ListQuery& query);
absl::StatusOr<Job> Update(Database& db, const JobPolicy& policy, const UpdateRequest& request,
                           Time now);
absl::StatusOr<Job> Cancel(Database& db, const CancelRequest& request, Time now);
absl::StatusOr<Job> Retry(Database& db, const JobPolicy& policy, const RetryRequest& request,
                          Time now);
absl::StatusOr<Job> Delete(Database& db, const DeleteRequest& request, Time now);
// Without any check: the sweeper's expiry uses it too.
void RemoveJob(Database& db, int64_t pk, Time now);
absl::StatusOr<EventBatch> Events(Database& db, const JobKey& key, int64_t after, int limit);
absl::StatusOr<Artifact> GetArtifact(Database& db, const std::string& tenant,
                                     const std::string& uid);
ArtifactPage ListArtifacts(Database& db, const std::string& tenant, int limit,
                           const std::optional<Cursor>& after);

}  // namespace quantry::server::sqlite
