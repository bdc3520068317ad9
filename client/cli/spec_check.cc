#include "client/cli/spec_check.h"

#include <algorithm>

#include "client/cli/method_flags.h"
#include "client/cli/spec.h"
#include "client/cli/text.h"
#include "common/errors.h"
#include "common/recipes.h"

namespace quantry::cli {
namespace {

template <typename List, typename Value>
bool Has(const List& list, const Value& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

absl::Status Invalid(const std::string& message, const std::string& field) {
  ErrorDetails details;
  details.field_violations.push_back({"quantization_job.spec." + field, message});
  return MakeDetailedError(Reason::kInvalidSpec, message, std::move(details));
}

}  // namespace

absl::Status CheckSpec(const v1::JobSpec& spec, const v1::ListMethodsResponse& methods) {
  const std::string name = MethodName(spec.method());
  std::vector<std::string> offered;
  const v1::MethodDescription* method = nullptr;
  for (const v1::MethodDescription& row : methods.methods()) {
    offered.push_back(row.name());
    if (row.name() == name) method = &row;
  }
  if (method == nullptr) {
    return Invalid(
        Cat("the server offers the methods ", CommaSeparated(offered), ", got \"", name, "\""),
        "method");
  }
  const v1::WeightGrid* grid = GridOf(spec.method());
  const bool open = grid != nullptr && grid->bits() == 0 && HasRecipe(spec.method());
  if (grid != nullptr && !open && !method->bits().empty() && !Has(method->bits(), grid->bits())) {
    return Invalid(
        Cat("bits: ", name, " takes ", CommaSeparated(method->bits()), ", got ", grid->bits()),
        Cat("method.", name, ".grid.bits"));
  }
  for (const RecipeConflict& conflict : FindRecipeConflicts(spec.method(), *method)) {
    return Invalid(
        Cat("recipe: ", conflict.field, ": wanted ", conflict.wanted, ", got ", conflict.got),
        conflict.field);
  }
  for (const v1::OutputSpec& output : spec.outputs()) {
    const std::string format = FormatName(output.format());
    if (!method->output_formats().empty() && !Has(method->output_formats(), format)) {
      return Invalid(Cat("format: ", name, " writes ", CommaSeparated(method->output_formats()),
                         ", got ", format),
                     "outputs");
    }
  }
  if (method->needs_calibration() && !spec.has_calibration()) {
    return Invalid(Cat("calibration: ", name,
                       " needs a text to calibrate with, got none: add "
                       "--calibration FILE"),
                   "calibration");
  }
  return absl::OkStatus();
}

}  // namespace quantry::cli
