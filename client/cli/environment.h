#pragma once

#include <chrono>
#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>

namespace quantry::cli {

class Interrupter;

// Everything a command takes from outside: streams, variables, time, signals.
// main() fills it from the process, tests from what they need. Outlives every
// command; used by one thread, except where a member says otherwise.
struct Environment {
  std::ostream& out;  // results
  std::ostream& err;  // progress and errors
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  // Width of the terminal behind `err`; asked before each redraw.
  std::function<int()> columns = [] { return 80; };
  // "" when the variable is not set.
  std::function<std::string(std::string_view)> variable = [](std::string_view) { return ""; };
  // Wall clock, for ages and ETAs.
  std::function<std::chrono::system_clock::time_point()> now = std::chrono::system_clock::now;
  // Monotonic clock, for waits and rates.
  std::function<std::chrono::steady_clock::time_point()> ticks = std::chrono::steady_clock::now;
  // Returns early when `interrupter` fires.
  std::function<void(std::chrono::milliseconds)> sleep = [](std::chrono::milliseconds) {};
  // A number in [0, 1): jitter.
  std::function<double()> random = [] { return 0.5; };
  Interrupter* interrupter = nullptr;  // null: no signals
};

}  // namespace quantry::cli
