// The checks of a method's options that need neither model nor engine. Internal
// to spec_validation.cc.
#pragma once

#include <string_view>

#include "quantry/v1/job.pb.h"
#include "server/rpc/violations.h"

namespace quantry::server {

// Bounds of numbers in a specification; larger ones are mistakes.
constexpr int kMaxIterations = 1000000;
constexpr int kMaxBatch = 65536;
// Calibration windows of a job that names neither them nor a recipe.
constexpr int kDefaultSamples = 128;
// Recipes whose options depend on them here (docs/methods).
constexpr std::string_view kTesseraqPlus = "tesseraq-plus";
constexpr int kFewActivationBits = 6;  // at most so many, and tesseraq-plus rotates the model
constexpr std::string_view kPtq161Plus = "ptq161-plus";

// Bits of a recipe for any grid where the job names none.
constexpr int kOpenBits = 4;

// `spec.method`, with what it asks of the calibration. `recipe`: the row that the
// method names; nullptr when it names none, or it is not known.
void CheckMethod(const v1::JobSpec& spec, const v1::RecipeDescription* recipe, Violations* out);

}  // namespace quantry::server
