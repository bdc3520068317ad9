#include "server/rpc/method_validation.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/rpc/idle_options.h"

namespace quantry::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr int kMaxGroupSize = 65536;
constexpr int kMaxStages = 1000;
constexpr double kMaxRate = 10;
constexpr double kMaxEnergyLimit = 1e9;

void CheckGrid(const std::string& field, const v1::WeightGrid& grid, Violations* out) {
  const int bits = grid.bits();
  if (bits != 2 && bits != 3 && bits != 4 && bits != 6 && bits != 8) {
    out->Wanted(field + ".bits", "2, 3, 4, 6 or 8", absl::StrCat(bits));
  }
  const int size = grid.group_size();
  if (size < -1 || size > kMaxGroupSize) {
    out->Wanted(field + ".group_size", "-1 (per channel), 0 (the default, 128) or 1 to 65536",
                absl::StrCat(size));
  }
}

void CheckActivations(const std::string& field, const v1::ActivationGrid& activations,
                      Violations* out) {
  const int bits = activations.bits();
  if (bits != 0 && bits != 16 && (bits < 2 || bits > 8)) {
    out->Wanted(field + ".bits", "2 to 8, or 16 (left alone)", absl::StrCat(bits));
  }
}

// Grid and activations, which most methods have.
template <typename Message>
void CheckGrids(const std::string& field, const Message& method, Violations* out) {
  CheckGrid(field + ".grid", method.grid(), out);
  CheckActivations(field + ".activations", method.activations(), out);
}

void CheckGptq(const std::string& field, const v1::GptqMethod& gptq, Violations* out) {
  CheckGrids(field, gptq, out);
  out->Share(field + ".damping", gptq.damping());
  out->Range(field + ".block_size", gptq.block_size(), 0, kMaxGroupSize);
}

// A step takes different windows. `batch` 0: as many as there are, up to the default.
void CheckBatch(const std::string& field, int batch, const v1::JobSpec& spec, Violations* out) {
  out->Range(field, batch, 0, kMaxBatch);
  const int given = spec.calibration().samples();
  const int samples = given == 0 ? kDefaultSamples : given;
  if (batch > kMaxBatch || samples < 0 || batch <= samples) return;
  out->Wanted(field, absl::StrCat("at most calibration.samples, ", samples), absl::StrCat(batch));
}

// 0 is the method's default.
void CheckNumber(const std::string& field, double value, double most, Violations* out) {
  if (value >= 0 && value <= most) return;
  out->Wanted(field, absl::StrCat("0 (the default) to ", most), absl::StrCat(value));
}

// An optional number, 0 where absent: CheckGivenNumbers tells a 0 that is given.
void CheckPositive(const std::string& field, double value, double most, Violations* out) {
  if (value >= 0 && value <= most) return;
  out->Wanted(field, absl::StrCat("above 0 and at most ", most), absl::StrCat(value));
}

// 0 is the recipe's default, -1 none although the recipe has one.
void CheckNumberOrNone(const std::string& field, double value, double most, Violations* out) {
  if (value == -1 || (value >= 0 && value <= most)) return;
  out->Wanted(field, absl::StrCat("-1 (none), 0 (the default) or up to ", most),
              absl::StrCat(value));
}

void CheckOmniquant(const std::string& field, const v1::JobSpec& spec, Violations* out) {
  const v1::OmniquantMethod& omniquant = spec.method().omniquant();
  CheckGrids(field, omniquant, out);
  out->Range(field + ".epochs", omniquant.epochs(), 0, kMaxIterations);
  CheckBatch(field + ".batch_size", omniquant.batch_size(), spec, out);
  CheckPositive(field + ".learning_rate", omniquant.learning_rate(), 1, out);
  CheckPositive(field + ".transform_learning_rate", omniquant.transform_learning_rate(), 1, out);
  out->Share(field + ".transform_alpha", omniquant.transform_alpha());
}

void CheckSignround(const std::string& field, const v1::JobSpec& spec, Violations* out) {
  const v1::SignroundMethod& signround = spec.method().signround();
  CheckGrids(field, signround, out);
  out->Range(field + ".iterations", signround.iterations(), 0, kMaxIterations);
  CheckBatch(field + ".batch_size", signround.batch_size(), spec, out);
  CheckPositive(field + ".learning_rate", signround.learning_rate(), 1, out);
  CheckPositive(field + ".range_learning_rate", signround.range_learning_rate(), 1, out);
  CheckNumber(field + ".token_energy_limit", signround.token_energy_limit(), kMaxEnergyLimit, out);
}

// `path` of a set field, the message that holds it, the field.
using Visit = std::function<void(const std::string& path, const Message&, const FieldDescriptor&)>;

// Every set field of `message` and of those within that is neither repeated nor a message itself.
void ForEachSetField(const std::string& field, const Message& message, const Visit& visit) {
  const google::protobuf::Reflection& fields = *message.GetReflection();
  std::vector<const FieldDescriptor*> set;
  fields.ListFields(message, &set);
  for (const FieldDescriptor* part : set) {
    if (part->is_repeated()) continue;
    const std::string path = absl::StrCat(field, ".", part->name());
    if (part->message_type() != nullptr) {
      ForEachSetField(path, fields.GetMessage(message, part), visit);
    } else {
      visit(path, message, *part);
    }
  }
}

// Enumerations are open on the wire: a number that no value has is a mistake.
void CheckEnums(const std::string& field, const Message& message, Violations* out) {
  ForEachSetField(
      field, message,
      [out](const std::string& path, const Message& holder, const FieldDescriptor& part) {
        if (part.enum_type() == nullptr) return;
        const int value = holder.GetReflection()->GetEnumValue(holder, &part);
        if (part.enum_type()->FindValueByNumber(value) != nullptr) return;
        out->Wanted(path, "a known " + part.enum_type()->name(), absl::StrCat(value));
      });
}

// Optional numbers are those where 0 means nothing, and is not the default either.
void CheckGivenNumbers(const std::string& field, const Message& message, Violations* out) {
  ForEachSetField(
      field, message,
      [out](const std::string& path, const Message& holder, const FieldDescriptor& part) {
        if (part.cpp_type() != FieldDescriptor::CPPTYPE_DOUBLE || !part.has_presence()) return;
        if (holder.GetReflection()->GetDouble(holder, &part) != 0) return;
        out->Wanted(path, "a number above 0, or nothing for the default", "0");
      });
}

void CheckPtq161(const std::string& field, const v1::Ptq161Method& ptq161, const v1::JobSpec& spec,
                 Violations* out) {
  constexpr double kMostSalient = 0.5;
  constexpr double kMostWeight = 1e6;
  constexpr int kMaxEpochs = 10000;
  const auto number = [&](const char* name, double value, double most) {
    CheckNumber(absl::StrCat(field, ".", name), value, most, out);
  };
  const auto positive = [&](const char* name, double value, double most) {
    CheckPositive(absl::StrCat(field, ".", name), value, most, out);
  };
  positive("salient_ratio", ptq161.salient_ratio(), kMostSalient);
  positive("gain_rate", ptq161.gain_rate(), kMaxRate);
  positive("rank_one_rate", ptq161.rank_one_rate(), kMaxRate);
  number("mse_weight", ptq161.mse_weight(), kMostWeight);
  number("cosine_weight", ptq161.cosine_weight(), kMostWeight);
  if (!(ptq161.stop_improvement() >= 0 && ptq161.stop_improvement() < 1)) {
    out->Wanted(field + ".stop_improvement", "0 (never) or a share below 1",
                absl::StrCat(ptq161.stop_improvement()));
  }
  CheckNumberOrNone(field + ".token_energy_limit", ptq161.token_energy_limit(), kMaxEnergyLimit,
                    out);
  positive("rounding_rate", ptq161.rounding_rate(), kMaxRate);
  positive("rounding_scale_rate", ptq161.rounding_scale_rate(), kMaxRate);
  if (ptq161.salient_multiple() == 1) {
    out->Wanted(field + ".salient_multiple", "0 or at least 2: every number is a multiple of 1",
                "1");
  }
  out->Range(field + ".salient_multiple", ptq161.salient_multiple(), 0, 4096);
  out->Range(field + ".epochs", ptq161.epochs(), 0, kMaxEpochs);
  out->Range(field + ".rounding_stages", ptq161.rounding_stages(), 0, kMaxStages);
  out->Range(field + ".rounding_steps", ptq161.rounding_steps(), 0, kMaxIterations);
  CheckBatch(field + ".rounding_batch", ptq161.rounding_batch(), spec, out);
}

void CheckSchedule(const std::string& field, const v1::TesseraqMethod& tesseraq, Violations* out) {
  out->Range(field + ".stages", tesseraq.stages(), 0, kMaxStages);
  if (tesseraq.schedule().empty()) return;
  if (tesseraq.stages() != 0) {
    out->Wanted(field + ".stages", "nothing beside schedule", absl::StrCat(tesseraq.stages()));
  }
  if (tesseraq.schedule_size() > kMaxStages) {
    out->Wanted(field + ".schedule", absl::StrCat("at most ", kMaxStages, " stages"),
                absl::StrCat(tesseraq.schedule_size()));
    return;
  }
  double before = 1;
  for (int i = 0; i < tesseraq.schedule_size(); ++i) {
    const double fraction = tesseraq.schedule(i);
    if (!(fraction > 0 && fraction < before)) {
      out->Wanted(absl::StrCat(field, ".schedule[", i, "]"),
                  "soft fractions that fall, below 1 and above 0", absl::StrCat(fraction));
      return;
    }
    before = fraction;
  }
}

// A step takes different windows, so there must be as many beside those held out.
void CheckWindows(const std::string& field, const v1::JobSpec& spec,
                  const v1::RecipeDescription* recipe, Violations* out) {
  constexpr std::int64_t kDefaultBatch = 4;
  constexpr std::int64_t kMaxTesseraqBatch = 4096;
  constexpr std::int64_t kMaxHeldOut = 1000000;
  const v1::TesseraqMethod& tesseraq = spec.method().tesseraq();
  const std::int64_t held_out = tesseraq.held_out_samples();
  out->Range(field + ".batch_size", tesseraq.batch_size(), 0, kMaxTesseraqBatch);
  out->Range(field + ".held_out_samples", held_out, 0, kMaxHeldOut);
  const std::int64_t batch = tesseraq.batch_size() == 0 ? kDefaultBatch : tesseraq.batch_size();
  std::int64_t samples = spec.calibration().samples();
  if (samples == 0 && tesseraq.recipe().empty()) samples = kDefaultSamples;
  if (samples == 0 && recipe != nullptr) samples = recipe->samples();
  if (samples <= 0) return;  // the recipe's, which the engine knows
  if (batch > samples) {
    out->Wanted(field + ".batch_size", absl::StrCat("at most calibration.samples, ", samples),
                absl::StrCat(batch));
  } else if (held_out > samples - batch) {
    out->Wanted(field + ".held_out_samples",
                absl::StrCat("at most ", samples - batch, ", so that a batch of ", batch,
                             " is left of calibration.samples, ", samples),
                absl::StrCat(held_out));
  }
}

// A recipe decides what the grid leaves open.
void CheckTesseraq(const std::string& field, const v1::JobSpec& spec,
                   const v1::RecipeDescription* recipe, Violations* out) {
  const v1::TesseraqMethod& tesseraq = spec.method().tesseraq();
  v1::WeightGrid grid = tesseraq.grid();
  if (!tesseraq.recipe().empty() && grid.bits() == 0) grid.set_bits(kOpenBits);
  CheckGrid(field + ".grid", grid, out);
  CheckActivations(field + ".activations", tesseraq.activations(), out);
  CheckSchedule(field, tesseraq, out);
  CheckWindows(field, spec, recipe, out);
  constexpr int kMaxReach = 2;
  out->Range(field + ".rounding_reach", tesseraq.rounding_reach(), 0, kMaxReach);
  out->Range(field + ".steps_per_stage", tesseraq.steps_per_stage(), 0, kMaxIterations);
  out->Range(field + ".final_steps", tesseraq.final_steps(), 0, kMaxIterations);
  out->Range(field + ".model_tuning_steps", tesseraq.model_tuning_steps(), -1, kMaxIterations);
  const auto positive = [&](const char* name, double value) {
    CheckPositive(absl::StrCat(field, ".", name), value, kMaxRate, out);
  };
  positive("learning_rate", tesseraq.learning_rate());
  positive("scale_learning_rate", tesseraq.scale_learning_rate());
  positive("model_tuning_rate", tesseraq.model_tuning_rate());
  CheckNumber(field + ".dense_learning_rate", tesseraq.dense_learning_rate(), kMaxRate, out);
  const auto number_or_none = [&](const char* name, double value, double most) {
    CheckNumberOrNone(absl::StrCat(field, ".", name), value, most, out);
  };
  number_or_none("scale_weight_decay", tesseraq.scale_weight_decay(), kMaxRate);
  number_or_none("model_tuning_dense_rate", tesseraq.model_tuning_dense_rate(), kMaxRate);
  number_or_none("token_energy_limit", tesseraq.token_energy_limit(), kMaxEnergyLimit);
  out->Share(field + ".final_rate_share", tesseraq.final_rate_share());
  out->Share(field + ".input_mixing", tesseraq.input_mixing());
  if (tesseraq.rounding_weight_decay() != 0) {
    out->Wanted(field + ".rounding_weight_decay",
                "0 (decay pulls decided roundings back and turns hardened ones into NaN)",
                absl::StrCat(tesseraq.rounding_weight_decay()));
  }
}

// 0 is the default.
void CheckPbllm(const std::string& field, double salient_ratio, Violations* out) {
  if (salient_ratio >= 0 && salient_ratio < 1) return;
  out->Wanted(field, "a share above 0 and below 1", absl::StrCat(salient_ratio));
}

}  // namespace

void CheckMethod(const v1::JobSpec& spec, const v1::RecipeDescription* recipe, Violations* out) {
  const v1::Method& method = spec.method();
  const std::string field = "quantization_job.spec.method";
  CheckEnums(field, method, out);
  CheckGivenNumbers(field, method, out);
  CheckIdleOptions(field, method, out);
  switch (method.kind_case()) {
    case v1::Method::kRtn:
      return CheckGrids(field + ".rtn", method.rtn(), out);
    case v1::Method::kAwq:
      CheckGrids(field + ".awq", method.awq(), out);
      out->Range(field + ".awq.scale_grid_points", method.awq().scale_grid_points(), 0, 1000);
      return;
    case v1::Method::kTesseraq:
      return CheckTesseraq(field + ".tesseraq", spec, recipe, out);
    case v1::Method::kPtq161:
      return CheckPtq161(field + ".ptq161", method.ptq161(), spec, out);
    case v1::Method::kBillm:
      return;  // switches only
    case v1::Method::kPbllm:
      return CheckPbllm(field + ".pbllm.salient_ratio", method.pbllm().salient_ratio(), out);
    case v1::Method::kRestore:
      return CheckPtq161(field + ".restore.first_pass", method.restore().first_pass(), spec, out);
    case v1::Method::kGptq:
      return CheckGptq(field + ".gptq", method.gptq(), out);
    case v1::Method::kOmniquant:
      return CheckOmniquant(field + ".omniquant", spec, out);
    case v1::Method::kQuarot:
      return CheckGrids(field + ".quarot", method.quarot(), out);
    case v1::Method::kSignround:
      return CheckSignround(field + ".signround", spec, out);
    case v1::Method::KIND_NOT_SET:
      return out->Wanted(field, "one of the methods of ListMethods", "nothing");
  }
}

}  // namespace quantry::server
