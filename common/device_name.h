#pragma once

#include <string_view>

namespace quantry {

// Whether jobs and workers may name a device so: auto, cpu, cuda, cuda:N with N below 100, or
// nothing, which leaves it to whoever runs the job.
inline bool IsDeviceName(std::string_view device) {
  if (device.empty() || device == "auto" || device == "cpu" || device == "cuda") return true;
  if (!device.starts_with("cuda:") || device.size() < 6 || device.size() > 7) return false;
  return device.find_first_not_of("0123456789", 5) == std::string_view::npos;
}

}  // namespace quantry
