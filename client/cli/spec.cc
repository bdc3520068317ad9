#include "client/cli/spec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/method_flags.h"
#include "client/cli/options.h"
#include "client/cli/text.h"
#include "common/enum_word.h"

namespace quantry::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::OneofDescriptor;

constexpr int kDefaultBits = 4;
constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

const OneofDescriptor* MethodOneof() { return v1::Method::descriptor()->FindOneofByName("kind"); }

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// The flag's word as one of the enum's values: "random" for SAMPLING_RANDOM.
absl::StatusOr<int> EnumValue(const google::protobuf::EnumDescriptor* type, std::string_view prefix,
                              std::string_view flag, std::string_view word) {
  std::vector<std::string> words;
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->number() == 0) continue;
    words.push_back(EnumWord(type->value(i)->name(), prefix));
    if (words.back() == word) return type->value(i)->number();
  }
  return absl::InvalidArgumentError(
      Cat(flag, ": wanted one of ", Join(words), ", got \"", word, "\""));
}

absl::StatusOr<v1::TextFormat> TextFormatOf(std::string_view flag, const std::string& word) {
  if (word.empty() || word == "text") return v1::TEXT_FORMAT_TEXT;
  if (word == "tokens") return v1::TEXT_FORMAT_TOKEN_IDS;
  return absl::InvalidArgumentError(Cat(flag, ": wanted text or tokens, got \"", word, "\""));
}

absl::Status FromJson(const std::string& json, v1::Method* method) {
  google::protobuf::util::JsonParseOptions options;
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, method, options);
  if (parsed.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat("--method-config: wanted the JSON of one method, like "
          "{\"awq\":{\"grid\":{\"bits\":4,\"groupSize\":64}}}, got an error: ",
          std::string(parsed.message())));
}

// Chooses the method by the oneof's field name, keeping what the file set.
absl::Status SelectMethod(const std::string& name, v1::Method* method) {
  const FieldDescriptor* field = v1::Method::descriptor()->FindFieldByName(name);
  if (field == nullptr || field->containing_oneof() != MethodOneof()) {
    return absl::InvalidArgumentError(
        Cat("--method: wanted one of ", Join(MethodNames()), ", got \"", name, "\""));
  }
  const std::string before = MethodName(*method);
  if (!before.empty() && before != name) {
    return absl::InvalidArgumentError(Cat("--method is \"", name, "\" but --method-config holds \"",
                                          before, "\": leave one of them out"));
  }
  method->GetReflection()->MutableMessage(method, field);
  return absl::OkStatus();
}

// Field `name` of the chosen method; null when it has none of that type.
template <typename Message>
Message* MutableField(v1::Method* method, const char* name) {
  const FieldDescriptor* kind =
      method->GetReflection()->GetOneofFieldDescriptor(*method, MethodOneof());
  if (kind == nullptr) return nullptr;
  const FieldDescriptor* field = kind->message_type()->FindFieldByName(name);
  if (field == nullptr || field->message_type() != Message::descriptor()) return nullptr;
  google::protobuf::Message* message = method->GetReflection()->MutableMessage(method, kind);
  return static_cast<Message*>(message->GetReflection()->MutableMessage(message, field));
}

absl::Status ApplyGridFlags(const SpecFlags& flags, v1::Method* method) {
  auto* grid = MutableField<v1::WeightGrid>(method, "grid");
  const bool given =
      flags.bits || flags.symmetric || flags.zero_point_at_least_one || !flags.group_size.empty();
  if (grid == nullptr) {
    if (!given) return absl::OkStatus();
    return absl::InvalidArgumentError(
        Cat("--bits, --group-size, --symmetric and --zero-point-at-least-one do not apply to "
            "method \"",
            MethodName(*method),
            "\", which has no grid to choose: leave them out (its options: `quantry methods`)"));
  }
  if (flags.bits) grid->set_bits(*flags.bits);
  if (grid->bits() == 0 && !HasRecipe(*method)) grid->set_bits(kDefaultBits);
  if (flags.symmetric) grid->set_symmetric(*flags.symmetric);
  if (flags.zero_point_at_least_one) {
    grid->set_zero_point_at_least_one(*flags.zero_point_at_least_one);
  }
  if (flags.group_size.empty()) return absl::OkStatus();
  const absl::StatusOr<int> group_size = ParseGroupSize(flags.group_size);
  if (!group_size.ok()) return group_size.status();
  grid->set_group_size(*group_size);
  return absl::OkStatus();
}

absl::Status ApplyActivationFlag(const SpecFlags& flags, v1::Method* method) {
  if (!flags.activation_bits) return absl::OkStatus();
  const int bits = *flags.activation_bits;
  if (bits != 16 && (bits < 2 || bits > 8)) {
    return absl::InvalidArgumentError(
        Cat("--activation-bits: wanted 2 to 8, or 16 to leave "
            "activations alone, got ",
            bits));
  }
  auto* activations = MutableField<v1::ActivationGrid>(method, "activations");
  if (activations != nullptr) {
    activations->set_bits(bits);
  } else if (bits != 16) {
    return absl::InvalidArgumentError(
        Cat("--activation-bits does not apply to method \"", MethodName(*method), "\""));
  }
  return absl::OkStatus();
}

// A flag that says how something is done, and whether it was given.
struct PartFlag {
  std::string flag;
  bool given;
};

// For what was not asked for: its flags would be forgotten in silence. `main` asks for
// it, `with` what is given: "FILE".
absl::Status NoneGiven(const std::string& main, const std::string& with,
                       const std::vector<PartFlag>& flags) {
  for (const PartFlag& one : flags) {
    if (!one.given) continue;
    return absl::InvalidArgumentError(Cat(one.flag, " has no effect without ", main, ": add ", main,
                                          with.empty() ? "" : " ", with, ", or leave ", one.flag,
                                          " out"));
  }
  return absl::OkStatus();
}

absl::Status SetCalibration(const SpecFlags& flags, v1::JobSpec* spec) {
  if (!flags.calibrate) {
    return NoneGiven("--calibration", "FILE",
                     {{"--calibration-format", !flags.calibration_format.empty()},
                      {"--calibration-samples", flags.calibration_samples != 0},
                      {"--calibration-length", flags.calibration_length != 0},
                      {"--calibration-sampling", !flags.calibration_sampling.empty()}});
  }
  v1::Calibration* calibration = spec->mutable_calibration();
  const auto format = TextFormatOf("--calibration-format", flags.calibration_format);
  if (!format.ok()) return format.status();
  calibration->set_format(*format);
  calibration->set_samples(flags.calibration_samples);
  calibration->set_sequence_length(flags.calibration_length);
  if (flags.calibration_sampling.empty()) return absl::OkStatus();
  const auto sampling = EnumValue(v1::Calibration::Sampling_descriptor(), "SAMPLING_",
                                  "--calibration-sampling", flags.calibration_sampling);
  if (!sampling.ok()) return sampling.status();
  calibration->set_sampling(static_cast<v1::Calibration::Sampling>(*sampling));
  return absl::OkStatus();
}

absl::Status SetEvaluation(const SpecFlags& flags, v1::JobSpec* spec) {
  if (!flags.evaluate) {
    if (flags.max_perplexity_ratio == 0 && flags.max_perplexity_increase == 0) {
      return NoneGiven("--evaluation", "FILE",
                       {{"--evaluation-format", !flags.evaluation_format.empty()},
                        {"--evaluation-length", flags.evaluation_length != 0},
                        {"--evaluation-windows", flags.evaluation_windows != 0}});
    }
    return absl::InvalidArgumentError(
        "--max-perplexity-ratio and --max-perplexity-increase need a text to measure on: add "
        "--evaluation FILE");
  }
  v1::Evaluation* evaluation = spec->mutable_evaluation();
  const auto format = TextFormatOf("--evaluation-format", flags.evaluation_format);
  if (!format.ok()) return format.status();
  evaluation->set_format(*format);
  evaluation->set_sequence_length(flags.evaluation_length);
  evaluation->set_windows(flags.evaluation_windows);
  if (flags.max_perplexity_ratio != 0) {
    spec->mutable_quality_gate()->set_max_perplexity_ratio(flags.max_perplexity_ratio);
  }
  if (flags.max_perplexity_increase != 0) {
    spec->mutable_quality_gate()->set_max_perplexity_increase(flags.max_perplexity_increase);
  }
  return absl::OkStatus();
}

// Those of the adapters are named after the fields of LoraOptions.
std::vector<PartFlag> PreprocessingFlags(const SpecFlags& flags) {
  std::vector<PartFlag> given = {
      {"--preprocessing-corpus", flags.preprocessing_corpus},
      {"--preprocessing-format", !flags.preprocessing_format.empty()},
      {"--preprocessing-length", flags.preprocessing_length != 0},
  };
  std::vector<const FieldDescriptor*> fields;
  flags.lora.GetReflection()->ListFields(flags.lora, &fields);
  for (const FieldDescriptor* field : fields) {
    std::string flag = "--preprocessing-" + field->name();
    std::replace(flag.begin(), flag.end(), '_', '-');
    given.push_back({std::move(flag), true});
  }
  return given;
}

absl::Status SetPreprocessing(const SpecFlags& flags, v1::JobSpec* spec) {
  // The method that is nothing but preprocessing.
  const bool restore = spec->method().has_restore();
  if (restore && flags.preprocessing == "none") {
    return absl::InvalidArgumentError(
        "--method restore is preprocessing, got --preprocessing none: leave it out, or choose "
        "another method");
  }
  if (!restore && flags.preprocessing != "lora") {
    return NoneGiven("--preprocessing lora", "", PreprocessingFlags(flags));
  }
  if (!flags.preprocessing_corpus) {
    return absl::InvalidArgumentError(
        Cat(restore ? "--method restore" : "--preprocessing lora",
            " needs a text to train on: add --preprocessing-corpus FILE"));
  }
  const auto format = TextFormatOf("--preprocessing-format", flags.preprocessing_format);
  if (!format.ok()) return format.status();
  v1::Preprocessing* preprocessing = spec->mutable_preprocessing();
  preprocessing->set_format(*format);
  preprocessing->set_sequence_length(flags.preprocessing_length);
  *preprocessing->mutable_lora() = flags.lora;
  return absl::OkStatus();
}

absl::Status SetOutputs(const SpecFlags& flags, v1::JobSpec* spec) {
  for (const std::string& word : flags.formats) {
    const auto format =
        EnumValue(v1::OutputFormat_descriptor(), "OUTPUT_FORMAT_", "--format", word);
    if (!format.ok()) return format.status();
    const auto value = static_cast<v1::OutputFormat>(*format);
    const bool twice = std::any_of(spec->outputs().begin(), spec->outputs().end(),
                                   [&](const v1::OutputSpec& o) { return o.format() == value; });
    if (!twice) spec->add_outputs()->set_format(value);
  }
  return absl::OkStatus();
}

google::protobuf::Duration DurationOf(double seconds) {
  google::protobuf::Duration duration;
  duration.set_seconds(static_cast<int64_t>(seconds));
  duration.set_nanos(static_cast<int32_t>(std::fmod(seconds, 1.0) * 1e9));
  return duration;
}

absl::Status SetResources(const SpecFlags& flags, v1::JobSpec* spec) {
  if (flags.gpus == 0 && flags.device.rfind("cuda", 0) != 0) {
    absl::Status status = NoneGiven("--gpus", "N", {{"--gpu-memory", flags.gpu_memory_gib > 0}});
    if (!status.ok()) return status;
  }
  v1::ResourceRequest resources;
  resources.set_device(flags.device);
  resources.set_threads(flags.threads);
  resources.set_gpu_count(flags.gpus);
  resources.set_min_gpu_memory_bytes(static_cast<int64_t>(flags.gpu_memory_gib * kGib));
  if (resources.ByteSizeLong() > 0) *spec->mutable_resources() = resources;
  v1::StopLimits limits;
  if (flags.max_run_s > 0) *limits.mutable_max_run() = DurationOf(flags.max_run_s);
  if (flags.max_pending_s > 0) *limits.mutable_max_pending() = DurationOf(flags.max_pending_s);
  if (flags.max_no_progress_s > 0) {
    *limits.mutable_max_no_progress() = DurationOf(flags.max_no_progress_s);
  }
  if (limits.ByteSizeLong() > 0) *spec->mutable_stop_limits() = limits;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::Method> BuildMethod(const SpecFlags& flags) {
  v1::Method method;
  if (!flags.method_config.empty()) {
    if (absl::Status status = FromJson(flags.method_config, &method); !status.ok()) return status;
  }
  if (!flags.method.empty()) {
    if (absl::Status status = SelectMethod(flags.method, &method); !status.ok()) return status;
  }
  if (MethodName(method).empty()) {
    return absl::InvalidArgumentError(
        Cat("--method: wanted one of ", Join(MethodNames()),
            " (or --method-config FILE.json), got none; `quantry methods` explains them"));
  }
  if (auto status = ApplyMethodFlags(flags.method_fields, &method); !status.ok()) return status;
  for (const auto apply : {ApplyGridFlags, ApplyActivationFlag}) {
    if (absl::Status status = apply(flags, &method); !status.ok()) return status;
  }
  return method;
}

absl::StatusOr<v1::JobSpec> BuildSpec(const SpecFlags& flags) {
  v1::JobSpec spec;
  absl::StatusOr<v1::Method> method = BuildMethod(flags);
  if (!method.ok()) return method.status();
  *spec.mutable_method() = *std::move(method);
  for (const auto set :
       {SetCalibration, SetPreprocessing, SetEvaluation, SetOutputs, SetResources}) {
    if (absl::Status status = set(flags, &spec); !status.ok()) return status;
  }
  spec.set_seed(flags.seed);
  return spec;
}

std::string MethodName(const v1::Method& method) {
  const FieldDescriptor* kind =
      method.GetReflection()->GetOneofFieldDescriptor(method, MethodOneof());
  return kind == nullptr ? "" : kind->name();
}

namespace {

// Field `name` of the chosen method; null when it has none of that type.
template <typename Message>
const Message* Field(const v1::Method& method, const char* name) {
  const FieldDescriptor* kind =
      method.GetReflection()->GetOneofFieldDescriptor(method, MethodOneof());
  if (kind == nullptr) return nullptr;
  const FieldDescriptor* field = kind->message_type()->FindFieldByName(name);
  if (field == nullptr || field->message_type() != Message::descriptor()) return nullptr;
  const google::protobuf::Message& message = method.GetReflection()->GetMessage(method, kind);
  return static_cast<const Message*>(&message.GetReflection()->GetMessage(message, field));
}

}  // namespace

const v1::WeightGrid* GridOf(const v1::Method& method) {
  return Field<v1::WeightGrid>(method, "grid");
}

int ActivationBitsOf(const v1::Method& method) {
  const auto* activations = Field<v1::ActivationGrid>(method, "activations");
  return activations == nullptr || activations->bits() == 0 ? 16 : activations->bits();
}

std::vector<std::string> MethodNames() {
  std::vector<std::string> names;
  for (int i = 0; i < MethodOneof()->field_count(); ++i) {
    names.push_back(MethodOneof()->field(i)->name());
  }
  return names;
}

std::string FormatName(v1::OutputFormat format) {
  return EnumWord(v1::OutputFormat_Name(format), "OUTPUT_FORMAT_");
}

std::vector<std::string> FormatNames() {
  std::vector<std::string> names;
  const auto* type = v1::OutputFormat_descriptor();
  for (int i = 0; i < type->value_count(); ++i) {
    if (type->value(i)->number() == 0) continue;
    names.push_back(EnumWord(type->value(i)->name(), "OUTPUT_FORMAT_"));
  }
  return names;
}

}  // namespace quantry::cli
