#include "client/cli/spec_check.h"

#include <algorithm>
#include <chrono>

#include "client/cli/format.h"
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

// Files at the server or uploaded to it; it does not fetch others for a quote.
bool CanBeQuoted(const v1::JobSpec& spec) {
  return !spec.model().has_uri() && !spec.calibration().source().has_uri() &&
         !spec.evaluation().source().has_uri() && !spec.preprocessing().source().has_uri();
}

absl::Status CannotRun(const v1::Quote& quote) {
  if (quote.problems().empty()) return absl::OkStatus();
  ErrorDetails details;
  std::string message = "the job could not run";
  for (const std::string& problem : quote.problems()) {
    message += (details.field_violations.empty() ? ": " : "; ") + problem;
    details.field_violations.push_back({"quantization_job.spec", problem});
  }
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

absl::Status CheckByQuote(Connection& connection, StatusLine& line,
                          v1::CreateQuantizationJobRequest request) {
  constexpr std::chrono::seconds kPatience{5};
  if (!CanBeQuoted(request.quantization_job().spec())) return absl::OkStatus();
  request.set_validate_only(true);
  request.clear_request_id();
  v1::CreateQuantizationJobResponse response;
  absl::Status status = connection.Ask(connection.jobs(), &Connection::Jobs::CreateQuantizationJob,
                                       request, &response, kPatience);
  if (status.ok()) return CannotRun(response.quote());
  if (absl::IsCancelled(status) || HasReason(status, Reason::kInvalidSpec)) return status;
  if (absl::IsDeadlineExceeded(status)) {
    line.Say(Cat("the check of the job was left out: ", Plain(std::string(status.message()))));
  }
  return absl::OkStatus();
}

}  // namespace quantry::cli
