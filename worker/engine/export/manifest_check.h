#pragma once

#include <string>

namespace quantry::engine {

// Compares every file of `dir` that the manifest.json beside `dir` lists with its
// size and sha256 there. Without such a manifest nothing is checked. Reads the
// files whole. Throws UserError INVALID_CHECKPOINT naming the file.
void CheckAgainstManifest(const std::string& dir);

// Whether a manifest.json beside `dir` is an artifact's, and not another program's.
bool IsOfArtifact(const std::string& dir);

}  // namespace quantry::engine
