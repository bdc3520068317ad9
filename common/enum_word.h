#pragma once

#include <string>
#include <string_view>

namespace quantry {

// An enum value's word, as flags and the engine have it: without its prefix, in lower case, parted
// by hyphens. OUTPUT_FORMAT_GPTQ_V1 gives "gptq-v1".
inline std::string EnumWord(std::string_view name, std::string_view prefix) {
  if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
  std::string word(name);
  for (char& c : word) {
    if (c == '_') c = '-';
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return word;
}

}  // namespace quantry
