// Options of a method that its other options leave without effect. Internal to
// method_validation.cc.
#pragma once

#include <string>

#include "google/protobuf/message.h"
#include "server/rpc/violations.h"

namespace quantry::server {

// Adds a violation for every field below `message` that is set and would change
// nothing: a job must not look as if it had been run with it. `field` is the
// message's path. The engine refuses the same (JsonObject::RefuseIdle);
// tests/conformance/idle_options.json holds both to one list of cases.
void CheckIdleOptions(const std::string& field, const google::protobuf::Message& message,
                      Violations* out);

}  // namespace quantry::server
