#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Where a PostgreSQL database is and how to log in.
namespace quantry::server::postgres {

// Whether a --job-store names PostgreSQL at all.
bool IsPostgresUri(const std::string& uri);

// libpq's keyword/value string for `uri` (postgresql://user@host:port/db?...,
// any parameter of libpq) with the password read from `password_file` ("" =
// none: peer, trust or ~/.pgpass). A connection attempt takes 5 s at most
// unless the URI says otherwise. Errors: INVALID_ARGUMENT INVALID_CONFIG for a
// malformed URI, a URI with a password (every process list shows it), a
// password file that is missing, empty or readable by everyone.
absl::StatusOr<std::string> MakeConninfo(const std::string& uri, const std::string& password_file);

// host:port/database for messages; never user or password.
std::string Describe(const std::string& conninfo);

}  // namespace quantry::server::postgres
