#include "server/rpc/output_formats.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/enum_word.h"
#include "server/rpc/method_validation.h"

namespace quantry::server {
namespace {

template <typename Keep>
std::string Names(Keep keep) {
  std::vector<std::string> names;
  const auto* type = v1::OutputFormat_descriptor();
  for (int i = 0; i < type->value_count(); ++i) {
    const auto format = static_cast<v1::OutputFormat>(type->value(i)->number());
    if (format == v1::OUTPUT_FORMAT_UNSPECIFIED || !keep(format)) continue;
    names.push_back(WordOf(format));
  }
  return absl::StrJoin(names, ", ");
}

// What readers of packed files know.
bool HasCommonBits(const v1::WeightGrid& grid) { return grid.bits() <= 4 || grid.bits() == 8; }

// What a grid must be for the format; empty when this one will do.
std::string WantedGrid(v1::OutputFormat format, const v1::WeightGrid& grid) {
  const std::string common = HasCommonBits(grid) ? "" : "a grid of 2, 3, 4 or 8 bits";
  switch (format) {
    case v1::OUTPUT_FORMAT_COMPRESSED_TENSORS:
    case v1::OUTPUT_FORMAT_GPTQ:
      return common;
    case v1::OUTPUT_FORMAT_AWQ:
      return grid.bits() == 4 ? "" : "a grid of 4 bits";
    case v1::OUTPUT_FORMAT_INT4_CARRIER:
      return grid.bits() <= 3 ? "" : "a grid of 2 or 3 bits";
    case v1::OUTPUT_FORMAT_GPTQ_V1:
      if (!common.empty()) return common;
      if (grid.symmetric() || grid.zero_point_at_least_one()) return "";
      return "a grid that is symmetric or has zero_point_at_least_one";
    default:
      return "";
  }
}

// Outputs that nothing but our engine is taken to run.
bool CarriesOnlineRotation(v1::OutputFormat format) {
  return format == v1::OUTPUT_FORMAT_DENSE || format == v1::OUTPUT_FORMAT_QUANTRY;
}

// 0 and 16 leave them alone.
bool QuantizesActivations(int bits) { return bits > 0 && bits < 16; }

}  // namespace

const v1::WeightGrid* GridOf(const v1::Method& method) {
  const auto* kind = method.GetReflection()->GetOneofFieldDescriptor(
      method, v1::Method::descriptor()->FindOneofByName("kind"));
  if (kind == nullptr) return nullptr;
  const auto* grid = kind->message_type()->FindFieldByName("grid");
  if (grid == nullptr || grid->message_type() != v1::WeightGrid::descriptor()) return nullptr;
  const auto& options = method.GetReflection()->GetMessage(method, kind);
  return static_cast<const v1::WeightGrid*>(&options.GetReflection()->GetMessage(options, grid));
}

bool RotatesOnline(const v1::Method& method, const v1::RecipeDescription* recipe) {
  if (method.has_quarot()) {
    const v1::QuarotMethod& quarot = method.quarot();
    if (quarot.rotation().has_online()) return quarot.rotation().online();
    return QuantizesActivations(quarot.activations().bits());
  }
  const v1::TesseraqMethod& tesseraq = method.tesseraq();
  const int given = tesseraq.activations().bits();
  const int bits = given != 0 || recipe == nullptr ? given : recipe->activation_bits();
  if (!QuantizesActivations(bits)) return false;
  if (tesseraq.init() == v1::TesseraqMethod::INIT_QUAROT) return true;
  return tesseraq.init() == v1::TesseraqMethod::INIT_UNSPECIFIED &&
         tesseraq.recipe() == kTesseraqPlus && bits <= kFewActivationBits;
}

std::string WordOf(v1::OutputFormat format) {
  return EnumWord(v1::OutputFormat_Name(format), "OUTPUT_FORMAT_");
}

std::string WantedContent(v1::OutputFormat format, const OutputContent& content) {
  if (content.online_rotation && !CarriesOnlineRotation(format)) {
    return "no rotation of activations while the model runs";
  }
  return content.grid ? WantedGrid(format, *content.grid) : "";
}

std::string ContentText(const OutputContent& content) {
  std::vector<std::string> parts;
  if (content.grid) {
    parts.push_back(absl::StrCat(content.grid->bits(), " bits"));
    parts.push_back(content.grid->symmetric() ? "symmetric" : "asymmetric");
  }
  if (content.online_rotation) parts.push_back("activations rotated online");
  return absl::StrJoin(parts, ", ");
}

bool Writes(const v1::MethodDescription& method, v1::OutputFormat format) {
  const auto& words = method.output_formats();
  return words.empty() || std::find(words.begin(), words.end(), WordOf(format)) != words.end();
}

std::string FormatsHolding(const OutputContent& content, const v1::MethodDescription& method) {
  return Names([&](v1::OutputFormat format) {
    return Writes(method, format) && WantedContent(format, content).empty();
  });
}

std::string KnownFormats() {
  return Names([](v1::OutputFormat) { return true; });
}

}  // namespace quantry::server
