#include "worker/engine/export/fp16_readers.h"

#include <nlohmann/json.hpp>
#include <set>

#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

// Tiles of Marlin, the narrowest of the kernels that engines choose.
constexpr int64_t kMarlinOut = 64;
constexpr int64_t kMarlinIn = 128;

}  // namespace

void ReadAsFp16(nlohmann::ordered_json& config) {
  const bool newer = config.contains("dtype");
  if (newer) config["dtype"] = "float16";
  if (!newer || config.contains("torch_dtype")) config["torch_dtype"] = "float16";
}

std::string Fp16Note(at::ScalarType scale_dtype) {
  if (scale_dtype != at::kBFloat16) return "";
  return " Scales are fp16 and config.json says float16 for such readers; the values are exact in "
         "bf16 too (the model's own dtype), in which activations too large for fp16 are safe.";
}

std::string KernelShapeNote(const GridSpec& grid, const std::vector<PlannedLinear>& linears) {
  std::string note;
  const int64_t group = grid.group_size;
  if (group > 0 && group != 32 && group != 64 && group != 128) {
    note += StrCat(" Fused kernels know group sizes 32, 64, 128 and per channel, not ", group, ".");
  }
  std::set<std::string> odd;
  for (const PlannedLinear& linear : linears) {
    const bool fits = linear.shape.out % kMarlinOut == 0 && linear.shape.in % kMarlinIn == 0;
    if (!fits) odd.insert(ShapeName(linear));
  }
  if (!odd.empty()) {
    note += StrCat(" Fused kernels want out_features in multiples of ", kMarlinOut,
                   " and in_features of ", kMarlinIn, ", unlike ", Join(odd), ".");
  }
  return note;
}

std::string ShapeName(const PlannedLinear& linear) {
  return StrCat(linear.module.substr(linear.module.rfind('.') + 1), " [", linear.shape.out, ", ",
                linear.shape.in, "]");
}

}  // namespace quantry::engine
