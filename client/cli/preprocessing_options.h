#pragma once

#include "client/cli/submit_options.h"

namespace quantry::cli {

// --preprocessing and what belongs to it: the corpus, and one flag a field of
// LoraOptions (job.proto). A flag not given leaves its field to the engine.
void AddPreprocessingOptions(CLI::App& command, SubmitOptions& options);

}  // namespace quantry::cli
