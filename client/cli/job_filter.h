#pragma once

#include <map>
#include <string>
#include <vector>

namespace quantry::cli {

// What list can ask for; empty members ask for nothing.
struct JobFilter {
  std::string state;  // "running"
  std::string method;
  std::map<std::string, std::string> labels;
};

// The filter in the API's language: `state = RUNNING AND labels.k = "v"`.
// Quotes and backslashes in values are escaped.
std::string FilterText(const JobFilter& filter);

// "queued", "running", ...
std::vector<std::string> StateWords();

}  // namespace quantry::cli
