#pragma once

#include <string>

namespace CLI {
class App;
}

namespace quantry::cli {

// A bash completion script for the tree of commands below `root`. Made from the
// tree itself, so it cannot lag behind it: words come from commands, options,
// choices (options.h) and type names (FILE, DIR and JOB complete as such).
std::string BashCompletion(const CLI::App& root);

}  // namespace quantry::cli
