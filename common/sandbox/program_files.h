// What the kernel and the dynamic loader need to start a program, read from
// its ELF headers: a sandbox must leave exactly that readable.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantry {

struct ProgramFiles {
  std::string interpreter;                   // "/lib64/ld-linux-x86-64.so.2"; "" when static
  std::vector<std::string> library_folders;  // RPATH and RUNPATH, $ORIGIN replaced
};

// `path` is absolute. NOT_FOUND / PERMISSION_DENIED when it cannot be read,
// INVALID_ARGUMENT when it is no 64-bit ELF program (a script, say).
absl::StatusOr<ProgramFiles> ReadProgramFiles(const std::string& path);

}  // namespace quantry
