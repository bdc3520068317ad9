#pragma once

#include <string>

namespace quantry::engine {

// Creates the artifact's folder and takes a manifest.json of an earlier run
// away: a folder with one is complete. EngineError ENVIRONMENT "WRITE_FAILED".
void CreateOutputFolder(const std::string& dir);

// Creates one format's folder and removes weight files (and their partial
// ones) an interrupted run left there. Touches no other file.
void PrepareFormatFolder(const std::string& dir);

}  // namespace quantry::engine
