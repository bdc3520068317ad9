#pragma once

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/http_admin.h"
#include "server/jobs/job_store.h"
#include "server/status/status_reader.h"

namespace quantry::server {

// The status pages of quantryd's admin port (docs/operations/status-page.md):
//   /                       queue, workers, jobs
//   /status.json            what it shows
//   /jobs/TENANT/ID         one job
//   /jobs/TENANT/ID.json    what it shows
//   /assets/...             style, script, icon
// Read-only, of all tenants. Every response forbids what the page does not
// need (Content-Security-Policy). A job that does not exist is 404, a store
// that does not answer 503. One thread at a time, as HttpAdmin calls it.
HttpAdmin::Pages StatusPages(JobStore* store, OperatorView* view, const Clock* clock);

}  // namespace quantry::server
