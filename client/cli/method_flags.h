#pragma once

#include <map>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "quantry/v1/method.pb.h"

namespace quantry::cli {

// A flag that sets one field of the chosen method's message.
struct MethodFlag {
  const char* flag;   // "--steps-per-stage"
  const char* field;  // "steps_per_stage"
  const char* type;   // for --help: "N", "X", "NAME"
  const char* help;
};

// Every such flag; which methods take one follows from method.proto.
std::span<const MethodFlag> MethodFlags();

// Sets the fields (name -> word) in the chosen method. An enum's word is its
// value without the prefix, in lower case: "awq" for INIT_AWQ.
// INVALID_ARGUMENT names the flag, what was wanted and what was given; a
// method that has no such field is one, too.
absl::Status ApplyMethodFlags(const std::map<std::string, std::string>& fields, v1::Method* method);

// Whether the method names a recipe, which then decides what flags leave open.
bool HasRecipe(const v1::Method& method);

}  // namespace quantry::cli
