#include "server/rpc/idle_options.h"

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/text_format.h"
#include "quantry/v1/method.pb.h"
#include "server/rpc/method_validation.h"

namespace quantry::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr std::string_view kOneOfTwo = " (leave one of the two out)";

struct Rule {
  const Descriptor* message;
  std::function<bool(const Message&)> idle;
  std::vector<std::string> options;  // fields of the message
  std::string why;                   // goes on "has no effect"
};

template <typename M>
Rule When(bool (*idle)(const M&), std::initializer_list<std::string> options,
          const std::string& why) {
  return {M::descriptor(),
          [idle](const Message& message) { return idle(static_cast<const M&>(message)); }, options,
          why};
}

std::string With(std::string_view option) {
  return absl::StrCat("with ", std::string(option), std::string(kOneOfTwo));
}

bool OneGroupARow(const v1::GptqMethod& gptq) { return gptq.grid().group_size() == -1; }

bool GroupsBeginBlocks(const v1::GptqMethod& gptq) {
  constexpr int kDefault = 128;  // of both
  const int group = gptq.grid().group_size() == 0 ? kDefault : gptq.grid().group_size();
  const int block = gptq.block_size() == 0 ? kDefault : gptq.block_size();
  return group > 0 && block > 0 && group % block == 0;
}

bool LearnsTransform(const v1::OmniquantMethod& omniquant) {
  const int bits = omniquant.activations().bits();
  const bool by_default = bits != 0 && bits < 16;
  return omniquant.has_learn_transform() ? omniquant.learn_transform() : by_default;
}

bool TunesModel(const v1::TesseraqMethod& tesseraq) {
  const int steps = tesseraq.model_tuning_steps();
  return steps > 0 || (steps == 0 && tesseraq.recipe() == kTesseraqPlus);
}

bool FixesSchedule(const v1::TesseraqMethod& tesseraq) {
  return tesseraq.steps_per_stage() > 0 && tesseraq.has_learning_rate();
}

// A shorter budget's search for the AWQ start is shorter, too.
bool ShortensSearch(const v1::TesseraqMethod& tesseraq) {
  const bool starts_from_awq = tesseraq.init() == v1::TesseraqMethod::INIT_AWQ ||
                               tesseraq.init() == v1::TesseraqMethod::INIT_UNSPECIFIED;
  return starts_from_awq && tesseraq.budget() != v1::TesseraqMethod::BUDGET_FULL;
}

// Norms and biases of the whole model, if it is tuned.
bool TunesDense(const v1::TesseraqMethod& tesseraq) {
  const double rate = tesseraq.model_tuning_dense_rate();
  return rate > 0 || (rate == 0 && tesseraq.recipe() == kTesseraqPlus);
}

bool LearnsRounding(const v1::Ptq161Method& ptq161) {
  return ptq161.learn_rounding() || ptq161.recipe() == kPtq161Plus;
}

std::vector<Rule> BaselineRules() {
  using Grid = v1::WeightGrid;
  using Awq = v1::AwqMethod;
  using Gptq = v1::GptqMethod;
  using Omniquant = v1::OmniquantMethod;
  using Signround = v1::SignroundMethod;
  using Billm = v1::BillmMethod;
  return {
      When<Grid>([](const Grid& m) { return m.symmetric(); }, {"zero_point_at_least_one"},
                 With("a symmetric grid, whose zero point is fixed")),
      When<Awq>([](const Awq& m) { return m.disable_scale_search(); }, {"scale_grid_points"},
                With("disable_scale_search")),
      When<Gptq>(OneGroupARow, {"static_groups", "fresh_groups"},
                 "with one group a row (choose a grid.group_size or leave it out)"),
      When<Gptq>([](const Gptq& m) { return m.act_order(); }, {"static_groups", "fresh_groups"},
                 With("act_order, which fixes all grids beforehand")),
      When<Gptq>([](const Gptq& m) { return m.static_groups(); }, {"fresh_groups"},
                 With("static_groups")),
      When<Gptq>(GroupsBeginBlocks, {"fresh_groups"},
                 "where every group begins a block of columns (choose a block_size that does not "
                 "divide grid.group_size, or leave it out)"),
      When<Omniquant>([](const Omniquant& m) { return !LearnsTransform(m); },
                      {"transform_learning_rate", "transform_alpha", "untie_rope_pairs"},
                      "unless a transformation is learned (set learn_transform, for OPT too, or "
                      "leave it out)"),
      When<Signround>([](const Signround& m) { return m.disable_range_tuning(); },
                      {"range_learning_rate"}, With("disable_range_tuning")),
      When<Billm>([](const Billm& m) { return m.metric() == Billm::METRIC_MAGNITUDE; }, {"domain"},
                  With("METRIC_MAGNITUDE, whose saliency is the weights themselves")),
  };
}

std::vector<Rule> TesseraqRules() {
  using Tesseraq = v1::TesseraqMethod;
  return {
      When<Tesseraq>(
          [](const Tesseraq& m) { return m.disable_scale_tuning(); },
          {"scale_learning_rate", "scale_weight_decay", "scale_curve", "model_tuning_rate"},
          With("disable_scale_tuning")),
      When<Tesseraq>(
          [](const Tesseraq& m) {
            return m.disable_scale_tuning() && m.dense_learning_rate() == 0;
          },
          {"final_steps"},
          "with disable_scale_tuning and no dense_learning_rate, as the roundings are decided by "
          "then (leave it or disable_scale_tuning out)"),
      When<Tesseraq>(
          [](const Tesseraq& m) {
            return m.disable_scale_tuning() && m.model_tuning_steps() > 0 && !TunesDense(m);
          },
          {"model_tuning_steps"},
          "with disable_scale_tuning and no model_tuning_dense_rate (set that or leave one of the "
          "two out)"),
      When<Tesseraq>([](const Tesseraq& m) { return !TunesModel(m); },
                     {"model_tuning_rate", "model_tuning_dense_rate"},
                     "without model_tuning_steps (set them or leave it out)"),
      When<Tesseraq>(
          [](const Tesseraq& m) {
            return FixesSchedule(m) && m.recipe() != kTesseraqPlus && !ShortensSearch(m);
          },
          {"budget"},
          "with both steps_per_stage and learning_rate given (leave one of the three out)"),
      When<Tesseraq>(
          [](const Tesseraq& m) {
            return FixesSchedule(m) && m.recipe() == kTesseraqPlus && m.model_tuning_steps() != 0;
          },
          {"budget"},
          "with steps_per_stage, learning_rate and model_tuning_steps given (leave one of the four "
          "out)"),
  };
}

std::vector<Rule> Ptq161Rules() {
  using Ptq161 = v1::Ptq161Method;
  return {
      When<Ptq161>([](const Ptq161& m) { return !LearnsRounding(m); },
                   {"rounding_stages", "rounding_steps", "rounding_batch", "rounding_rate",
                    "rounding_scale_rate"},
                   "without learn_rounding (set that or leave it out)"),
      When<Ptq161>([](const Ptq161& m) { return m.disable_mask(); },
                   {"salient_ratio", "statistic", "exact_top_k", "salient_multiple", "salient_grid",
                    "first_pass_mask"},
                   With("disable_mask: no column is salient")),
      When<Ptq161>([](const Ptq161& m) { return m.disable_training(); },
                   {"epochs", "gain_rate", "relative_gain", "shuffle", "mse_weight",
                    "cosine_weight", "disable_cosine", "token_cosine", "stop_improvement"},
                   With("disable_training")),
      // Learned signs train r2 as well.
      When<Ptq161>([](const Ptq161& m) { return m.disable_training() && !LearnsRounding(m); },
                   {"rank_one_rate", "compute_dtype", "token_energy_limit"},
                   With("disable_training")),
      // Adam's steps do not depend on the size of a loss of one term.
      When<Ptq161>([](const Ptq161& m) { return m.disable_cosine(); },
                   {"mse_weight", "cosine_weight", "token_cosine"}, With("disable_cosine")),
      When<Ptq161>([](const Ptq161& m) { return m.epochs() == 1; }, {"stop_improvement"},
                   "with one epoch, which has none to be compared with (ask for more epochs or "
                   "leave it out)"),
  };
}

const std::vector<Rule>& Rules() {
  static const std::vector<Rule> table = [] {
    std::vector<Rule> rules;
    for (const auto& part : {BaselineRules(), TesseraqRules(), Ptq161Rules()}) {
      rules.insert(rules.end(), part.begin(), part.end());
    }
    return rules;
  }();
  return table;
}

// Why a field has no effect; empty when it has one. The first rule speaks.
std::string WhyIdle(const Message& message, const std::string& name) {
  for (const Rule& rule : Rules()) {
    if (rule.message != message.GetDescriptor() || !rule.idle(message)) continue;
    const auto& options = rule.options;
    if (std::find(options.begin(), options.end(), name) != options.end()) return rule.why;
  }
  return "";
}

// Of a field that is set and not repeated (no rule has such): 40, true, METRIC_HESSIAN.
std::string ValueText(const Message& message, const FieldDescriptor* field) {
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, field, -1, &text);
  return text;
}

}  // namespace

void CheckIdleOptions(const std::string& field, const Message& message, Violations* out) {
  const auto& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> set;  // what its type's default is not, or has presence
  reflection.ListFields(message, &set);
  for (const FieldDescriptor* part : set) {
    const std::string path = absl::StrCat(field, ".", part->name());
    if (part->message_type() != nullptr && !part->is_repeated()) {
      CheckIdleOptions(path, reflection.GetMessage(message, part), out);
      continue;
    }
    const std::string why = WhyIdle(message, part->name());
    if (why.empty()) continue;
    out->Wanted(path, "nothing, as it has no effect " + why, ValueText(message, part));
  }
}

}  // namespace quantry::server
