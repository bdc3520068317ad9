#pragma once

#include <string>
#include <vector>

#include "client/cli/environment.h"

namespace quantry::cli {

// The whole program: parses `arguments` (without the program's name), runs one
// command, prints its result or its error, returns the exit code
// (exit_codes.h). Tests call it as main() does.
int RunCli(const std::vector<std::string>& arguments, Environment& env);

}  // namespace quantry::cli
