#include "worker/agent/visible_gpus.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace quantry::agent {
namespace {

std::vector<std::string> Ids(const std::string& visible) {
  std::vector<std::string> ids;
  for (const absl::string_view id : absl::StrSplit(visible, ',')) {
    ids.emplace_back(absl::StripAsciiWhitespace(id));
  }
  return ids;
}

const GpuDescription* Find(const std::vector<GpuDescription>& all, const std::string& id) {
  int index = 0;
  if (absl::SimpleAtoi(id, &index)) {
    const bool is_there = index >= 0 && static_cast<std::size_t>(index) < all.size();
    return is_there ? &all[static_cast<std::size_t>(index)] : nullptr;
  }
  if (!id.starts_with("GPU-")) return nullptr;
  const auto found = std::find_if(
      all.begin(), all.end(), [&](const GpuDescription& gpu) { return gpu.uuid.starts_with(id); });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace

std::vector<GpuDescription> VisibleGpus(const std::vector<GpuDescription>& all,
                                        const std::optional<std::string>& visible) {
  if (!visible) return all;
  std::vector<GpuDescription> gpus;
  for (const std::string& id : Ids(*visible)) {
    const GpuDescription* gpu = Find(all, id);
    if (gpu == nullptr) break;
    const bool again = std::any_of(
        gpus.begin(), gpus.end(), [&](const GpuDescription& one) { return one.uuid == gpu->uuid; });
    if (again) return {};  // CUDA shows none at all
    gpus.push_back(*gpu);
  }
  return gpus;
}

std::vector<GpuReading> VisibleInventory::Read() const {
  std::vector<GpuReading> readings = all_->Read();
  std::erase_if(readings, [&](const GpuReading& reading) {
    return std::none_of(gpus_.begin(), gpus_.end(),
                        [&](const GpuDescription& gpu) { return gpu.uuid == reading.uuid; });
  });
  return readings;
}

std::string OnlyVisible(const std::optional<std::string>& visible, int index) {
  if (!visible) return std::to_string(index);
  const std::vector<std::string> ids = Ids(*visible);
  const auto at = static_cast<std::size_t>(index);
  return at < ids.size() ? ids[at] : "";
}

}  // namespace quantry::agent
