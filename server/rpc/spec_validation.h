// The field checks of a job specification. Internal to validation.cc.
#pragma once

#include "quantry/v1/job.pb.h"
#include "server/rpc/validation.h"
#include "server/rpc/violations.h"

namespace quantry::server {

void CheckSpec(const v1::JobSpec& spec, const SpecLimits& limits, Violations* violations);

}  // namespace quantry::server
