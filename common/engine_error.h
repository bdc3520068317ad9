// How much of an engine's failure goes from worker to server: one rule for who
// sends and who takes it. It lies in the job's row, and every list of jobs
// carries it.
#pragma once

#include <cstddef>

#include "quantry/v1/engine.pb.h"

namespace quantry {

inline constexpr std::size_t kMaxErrorMessageBytes = 8 << 10;
inline constexpr std::size_t kMaxLogTailBytes = 16 << 10;

// `error` cut to what a job may have: a reason of 64 bytes, the message, 16
// entries of metadata, the first by name, with keys of 64 bytes and values of
// 1 KiB. Texts of engines may go on for pages.
v1::EngineError Bounded(v1::EngineError error);

}  // namespace quantry
