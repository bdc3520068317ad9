#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "worker/engine/base/error.h"

namespace quantry::engine {

// The whole file. `reason` is that of the UserError thrown when the file is
// absent, not a regular file or larger than max_bytes ("INVALID_CHECKPOINT");
// a failing read is EngineError ENVIRONMENT "STORAGE_ERROR".
std::string ReadFile(const std::string& path, uint64_t max_bytes, const std::string& reason);

// Throws what ReadFile would before its first read.
void CheckReadable(const std::string& path, uint64_t max_bytes, const std::string& reason);

bool IsRegularFile(const std::string& path);

// Whether anything is there. A disk that cannot say is EngineError ENVIRONMENT "STORAGE_ERROR":
// no reason to take a file for lost.
bool Exists(const std::string& path);
// Whether it speaks of the disk rather than of what a file holds.
bool IsOfTheDisk(const EngineError& error);

// Writes all bytes to an open descriptor. EngineError ENVIRONMENT "DISK_FULL"
// naming `path` and `total_bytes` (what the whole file wants) when the disk or
// a quota is full or the file larger than one may be, "STORAGE_ERROR" otherwise.
void WriteFully(int fd, const void* data, uint64_t bytes, const std::string& path,
                uint64_t total_bytes);

// Atomic: "PATH.partial", synced, renamed, the folder synced. After a crash the
// old file or the new one is there, never a mixture.
void WriteFileAtomically(const std::string& path, std::string_view content);

// The last steps of an atomic write: sync and close fd, rename partial to
// path, sync the folder. Throws like WriteFully.
void CommitFile(int fd, const std::string& partial, const std::string& path);

// Opens "PATH.partial" for CommitFile; returns its descriptor.
int CreatePartial(const std::string& partial);

}  // namespace quantry::engine
