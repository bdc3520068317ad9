#pragma once

#include <memory>

#include "server/jobs/job_store.h"
#include "server/scheduling/wakeup_hub.h"

namespace quantry::server {

// Tells `hub` (which must outlive the result) about every change that `store`
// has made durable.
std::unique_ptr<JobStore> NotifyingJobStore(std::unique_ptr<JobStore> store, WakeupHub* hub);

}  // namespace quantry::server
