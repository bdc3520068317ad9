#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "worker/engine/base/error.h"

namespace quantry::engine::test {

// The EngineError `body` throws; a failed test when it throws none.
inline EngineError ErrorOf(const std::function<void()>& body) {
  try {
    body();
  } catch (const EngineError& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return EngineError(FailureClass::kBug, "NOTHING_THROWN", "");
}

inline bool Mentions(const EngineError& error, const std::string& words) {
  return std::string(error.what()).find(words) != std::string::npos;
}

}  // namespace quantry::engine::test
