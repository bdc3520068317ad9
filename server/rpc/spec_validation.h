// The field checks of a job specification. Internal to validation.cc.
#pragma once

#include <span>

#include "quantry/v1/job.pb.h"
#include "server/rpc/validation.h"
#include "server/rpc/violations.h"

namespace quantry::server {

// What the engine says of the method that the spec names; empty when it says
// nothing. `methods`: see ValidateCreate.
const v1::MethodDescription& DescriptionOf(const v1::Method& method,
                                           std::span<const v1::MethodDescription> methods);

void CheckSpec(const v1::JobSpec& spec, const SpecLimits& limits,
               std::span<const v1::MethodDescription> methods, Violations* violations);

// For reuse_result: the spec digest must stand for the content of every source.
void CheckReusable(const v1::JobSpec& spec, Violations* violations);

}  // namespace quantry::server
