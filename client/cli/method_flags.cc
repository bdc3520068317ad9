#include "client/cli/method_flags.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <array>
#include <charconv>
#include <optional>
#include <vector>

#include "client/cli/spec.h"
#include "client/cli/text.h"
#include "common/enum_word.h"
#include "common/recipes.h"

namespace quantry::cli {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr std::array kFlags = {
    MethodFlag{"--recipe", "recipe", "NAME",
               "Settings under one name; see `quantry methods`. Flags win over it, but for the "
               "grid it fixes"},
    MethodFlag{"--init", "init", "NAME",
               "What tesseraq starts from: awq, omniquant, quarot, signround or none. Default: "
               "awq; the recipe tesseraq-plus signround, with activations of 6 bits or "
               "fewer quarot"},
    MethodFlag{"--budget", "budget", "NAME",
               "full, balanced (a fifth of the steps) or fast (a tenth). Default: full; the "
               "recipe tesseraq-plus fast (a third of its full steps)"},
    MethodFlag{"--stages", "stages", "N", "Stages of hardening. Default: 20"},
    MethodFlag{"--steps-per-stage", "steps_per_stage", "N",
               "Steps of a stage. Default: 250, the recipe tesseraq-plus 8"},
    MethodFlag{"--learning-rate", "learning_rate", "X",
               "Rate of the rounding. Default: tesseraq 1e-3, its recipe tesseraq-plus 4e-2; "
               "signround 1 / iterations; omniquant 1e-2"},
    MethodFlag{"--batch-size", "batch_size", "N",
               "Calibration windows a step. Default: tesseraq 4, signround 8, omniquant 1"},
    MethodFlag{"--rounding-reach", "rounding_reach", "N",
               "Steps of the grid a rounding may go, 1 or 2. Default: 1"},
    MethodFlag{"--held-out-samples", "held_out_samples", "N",
               "Calibration windows that judge each block's rounding instead of training it"},
    MethodFlag{
        "--compute-dtype", "compute_dtype", "NAME",
        "Of the products of training steps: float32 or bfloat16. Default: float32, with the recipe "
        "tesseraq-plus bfloat16 where a CPU multiplies it"},
    MethodFlag{"--epochs", "epochs", "N",
               "Passes over the calibration text. Default: 20; the recipe ptq161-plus 2; omniquant "
               "at 2 bits 40"},
    MethodFlag{"--salient-ratio", "salient_ratio", "X",
               "Share of the columns ptq161 keeps in 4 bits, at most 0.5 (default: 0.2), or of the "
               "weights pbllm keeps in 8 bits (0.1)"},
};

template <typename Number>
std::optional<Number> ParseNumber(const std::string& word) {
  Number number{};
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return number;
}

// INIT_ of INIT_UNSPECIFIED.
std::string PrefixOf(const EnumDescriptor* type) {
  const std::string first = type->value(0)->name();
  return first.substr(0, first.size() - std::string("UNSPECIFIED").size());
}

// What a field takes; the word is set where it fits.
std::string SetEnum(const FieldDescriptor* field, const std::string& word, Message* message) {
  const EnumDescriptor* type = field->enum_type();
  std::string known;
  for (int i = 1; i < type->value_count(); ++i) {
    const std::string name = EnumWord(type->value(i)->name(), PrefixOf(type));
    if (name == word) {
      message->GetReflection()->SetEnum(message, field, type->value(i));
      return "";
    }
    known += (known.empty() ? "one of " : ", ") + name;
  }
  return known;
}

// Empty when set, else what was wanted.
std::string SetField(const FieldDescriptor* field, const std::string& word, Message* message) {
  const auto* reflection = message->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      reflection->SetString(message, field, word);
      return "";
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(field, word, message);
    case FieldDescriptor::CPPTYPE_INT32: {
      const auto number = ParseNumber<int>(word);
      if (!number || *number <= 0) return "a whole number above 0";
      reflection->SetInt32(message, field, *number);
      return "";
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const auto number = ParseNumber<double>(word);
      if (!number || !(*number > 0)) return "a number above 0";
      reflection->SetDouble(message, field, *number);
      return "";
    }
    default:
      return "a field that --method-config sets";
  }
}

Message* KindOf(v1::Method* method, const FieldDescriptor** field) {
  *field = method->GetReflection()->GetOneofFieldDescriptor(
      *method, v1::Method::descriptor()->FindOneofByName("kind"));
  return *field == nullptr ? nullptr : method->GetReflection()->MutableMessage(method, *field);
}

std::string FlagOf(const std::string& field) {
  for (const MethodFlag& flag : kFlags) {
    if (flag.field == field) return flag.flag;
  }
  return "--" + field;
}

}  // namespace

std::span<const MethodFlag> MethodFlags() { return kFlags; }

absl::Status ApplyMethodFlags(const std::map<std::string, std::string>& fields,
                              v1::Method* method) {
  const FieldDescriptor* kind = nullptr;
  Message* message = KindOf(method, &kind);
  for (const auto& [name, word] : fields) {
    const FieldDescriptor* field =
        message == nullptr ? nullptr : kind->message_type()->FindFieldByName(name);
    if (field == nullptr) {
      return absl::InvalidArgumentError(Cat(FlagOf(name), " does not apply to method \"",
                                            MethodName(*method), "\": leave it out"));
    }
    const std::string wanted = SetField(field, word, message);
    if (wanted.empty()) continue;
    return absl::InvalidArgumentError(
        Cat(FlagOf(name), ": wanted ", wanted, ", got \"", word, "\""));
  }
  return absl::OkStatus();
}

bool HasRecipe(const v1::Method& method) { return !RecipeName(method).empty(); }

}  // namespace quantry::cli
