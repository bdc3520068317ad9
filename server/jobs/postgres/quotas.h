#pragma once

#include <string>

#include "server/jobs/postgres/database.h"
#include "server/jobs/sql_quotas.h"

// sql_quotas.h for many servers. The row of a quota is locked while its tenant's
// jobs are counted, so that two servers cannot both take the last place;
// tenants without a limit never wait for each other. Its place in the order of
// locks: rows.h.
namespace quantry::server::postgres {

using sql::ArtifactBytes;
using sql::ReadQuota;
using sql::ReadUsage;
using sql::SetQuota;
using sql::TenantsAtRunningQuota;  // a hint: see MayRunAnother

using sql::AdmitQueued;
using sql::CountSubmit;  // of a job that has its result at once

// What submits of a tenant are measured by, the row locked if it limits them.
sql::QuotaRow LockQuota(Database& db, const std::string& tenant);

// Holds until the end of the transaction. Of a tenant that may not, the row is let
// go: a claim then looks at other tenants, and two claims that came from both
// sides would each hold the row that the other waits for.
bool MayRunAnother(Database& db, const std::string& tenant);

}  // namespace quantry::server::postgres
