#pragma once

#include <string>
#include <vector>

#include "worker/engine/export/layout.h"
#include "worker/engine/model/checkpoint.h"

namespace quantry::engine {

// What stands beside the weights of an output (formats.md 3.1). Both write
// into `dir` and return the names of the files written; remarks for the user
// go to `warnings`.

// config.json of the source with the layout's description added; nothing is
// lost but `auto_map`, which would run code that is not copied.
std::string WriteConfig(const Checkpoint& checkpoint, const Layout& layout, const std::string& dir,
                        std::vector<std::string>& warnings);

// The files that CopyModelFiles copies where a folder has them.
std::vector<std::string> CopiedNames();

// Tokenizer, generation config, chat template and licence, byte for byte.
// Never *.py. Throws as CheckModelFiles does.
std::vector<std::string> CopyModelFiles(const std::string& from, const std::string& dir);

// Whether CopyModelFiles will find all it copies readable: UserError
// INVALID_CHECKPOINT for a file larger than any tokenizer, ENVIRONMENT
// "STORAGE_ERROR" for one that cannot be opened. To be asked before hours of
// work.
void CheckModelFiles(const std::string& from);

}  // namespace quantry::engine
