// Requests to object stores that failed for a moment and are made again. Internal to
// common/storage*.cc.
#pragma once

#include <arrow/result.h>
#include <arrow/status.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "common/jitter.h"

namespace quantry::storage_internal {

// After waits of 5 to 10 s together.
inline constexpr int kMaxRepeats = 7;

// How long to wait when a request has failed and was repeated `repeated` times.
inline std::chrono::milliseconds RepeatDelay(std::int64_t repeated) {
  constexpr std::int64_t kFirstMs = 200;
  constexpr std::int64_t kLongestMs = 2500;
  const std::int64_t step = std::min(kFirstMs << std::min<std::int64_t>(repeated, 8), kLongestMs);
  return RandomTime(std::chrono::milliseconds(step / 2), std::chrono::milliseconds(step));
}

// Whether an answer broke off in its body, which Azure's client tells of at once: it repeats
// what breaks before, and reads of objects. `took`: the call. What might be either is a body's
// when the client had no time to repeat it.
bool BrokeOff(const arrow::Status& status, std::chrono::steady_clock::duration took);

inline const arrow::Status& StatusOf(const arrow::Status& status) { return status; }
template <typename T>
const arrow::Status& StatusOf(const arrow::Result<T>& result) {
  return result.status();
}

// What `call`, a request of Azure that may be made twice, returns when its answer does not
// break off, or after kMaxRepeats. `wait` gets each delay.
template <typename Call, typename Wait>
auto UntilWhole(const Call& call, const Wait& wait) -> decltype(call()) {
  for (int repeated = 0;; ++repeated) {
    const auto begun = std::chrono::steady_clock::now();
    auto result = call();
    const auto took = std::chrono::steady_clock::now() - begun;
    if (repeated == kMaxRepeats || !BrokeOff(StatusOf(result), took)) return result;
    wait(RepeatDelay(repeated));
  }
}

}  // namespace quantry::storage_internal
