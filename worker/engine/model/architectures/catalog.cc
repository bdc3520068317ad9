#include <algorithm>
#include <array>

#include "worker/engine/model/architectures/architectures.h"

namespace quantry::engine {

std::span<const Architecture* const> Architectures() {
  static const std::array kTable = {
      &architectures::Llama(), &architectures::Mistral(), &architectures::Qwen2(),
      &architectures::Qwen3(), &architectures::Opt(),
  };
  return kTable;
}

const Architecture* FindArchitecture(const std::string& model_type) {
  for (const Architecture* row : Architectures()) {
    const auto& types = row->model_types;
    if (std::find(types.begin(), types.end(), model_type) != types.end()) return row;
  }
  return nullptr;
}

int Architecture::LinearIndex(LinearRole role) const {
  for (size_t i = 0; i < linears.size(); ++i) {
    if (linears[i].role == role) return static_cast<int>(i);
  }
  return -1;
}

int Architecture::NormIndex(NormRole role) const {
  for (size_t i = 0; i < norms.size(); ++i) {
    if (norms[i].role == role) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace quantry::engine
