#pragma once

#include <cstring>
#include <string>

namespace quantry {

// "SIGSEGV"; "other" of a number that is no signal's, so that a metric's label has few values.
inline std::string SignalName(int signal) {
  const char* name = sigabbrev_np(signal);
  return name == nullptr ? "other" : std::string("SIG") + name;
}

}  // namespace quantry
