#include "client/cli/job_text.h"

#include <utility>

#include "client/cli/errors.h"
#include "client/cli/format.h"
#include "client/cli/names.h"
#include "client/cli/progress.h"
#include "client/cli/spec.h"
#include "client/cli/text.h"
#include "common/recipes.h"
#include "common/trace_context.h"

namespace quantry::cli {
namespace {

using FieldList = std::vector<std::pair<std::string, std::string>>;

// The recipe, which begins with its method's name but for restore, whose recipes are another's.
std::string RecipeText(const v1::Method& method) {
  const std::string name = MethodName(method);
  const std::string recipe = Plain(RecipeName(method));
  if (recipe.empty()) return name;
  return recipe.rfind(name, 0) == 0 ? recipe : Cat(name, " ", recipe);
}

// "tesseraq-plus 2-bit g64"; a grid without bits is its recipe's: "tesseraq-w2g64".
std::string GridText(const v1::Method& method) {
  std::string text = RecipeText(method);
  const v1::WeightGrid* grid = GridOf(method);
  if (grid == nullptr) return text;
  if (grid->bits() != 0) text += Cat(" ", grid->bits(), "-bit");
  if (grid->group_size() == -1) text += " per channel";
  if (grid->group_size() > 0) text += Cat(" g", grid->group_size());
  if (grid->symmetric()) text += " symmetric";
  const int activation_bits = ActivationBitsOf(method);
  return activation_bits == 16 ? text : text + Cat(" a", activation_bits);
}

std::string LabelsText(const google::protobuf::Map<std::string, std::string>& labels) {
  std::string text;
  for (const auto& [key, value] :
       std::map<std::string, std::string>(labels.begin(), labels.end())) {
    text += Cat(text.empty() ? "" : ",", key, "=", value);
  }
  return Plain(text);
}

std::string QualityText(const v1::Perplexity& perplexity) {
  return Cat(Number(perplexity.dense()), " -> ", Number(perplexity.quantized()), "  (x",
             Number(perplexity.quantized() / perplexity.dense(), 4), ", ", perplexity.windows(),
             " windows of ", perplexity.sequence_length(), " tokens)");
}

// The method, and whether adapters restored the model before it: its perplexity compares with no
// job's without them.
std::string MethodText(const v1::JobSpec& spec) {
  return Cat(GridText(spec.method()), spec.has_preprocessing() ? " +lora" : "");
}

void AddTimes(const v1::QuantizationJob& job, WallTime now, FieldList& fields) {
  const std::string created = Rfc3339(job.create_time());
  if (!created.empty()) {
    fields.emplace_back("created", Cat(created, "  (", Ago(job.create_time(), now), ")"));
  }
  if (job.has_start_time()) fields.emplace_back("started", Rfc3339(job.start_time()));
  if (job.has_end_time()) fields.emplace_back("ended", Rfc3339(job.end_time()));
}

std::string NextStep(const v1::QuantizationJob& job) {
  const std::string id(ShortId(job.name()));
  switch (job.state()) {
    case v1::JOB_STATE_QUEUED:
    case v1::JOB_STATE_RUNNING:
    case v1::JOB_STATE_CANCELLING:
      return "quantry watch " + id;
    case v1::JOB_STATE_SUCCEEDED:
      return Cat("quantry pull ", id, " DIR");
    case v1::JOB_STATE_FAILED:
      return "quantry events " + id;
    default:
      return "";
  }
}

std::string ProgressText(const v1::QuantizationJob& job) {
  if (job.state() != v1::JOB_STATE_RUNNING) return "";
  std::string text = Cat(Percent(job.progress().ratio()), " ", StageWord(job.progress().stage()));
  if (job.progress().blocks_total() > 0) {
    text += Cat(" ", job.progress().blocks_done(), "/", job.progress().blocks_total());
  }
  return text;
}

std::string OutcomeText(const v1::QuantizationJob& job) {
  if (job.has_result() && job.result().has_quality()) {
    const v1::Perplexity& perplexity = job.result().quality().perplexity();
    return Cat(Number(perplexity.dense(), 4), " -> ", Number(perplexity.quantized(), 4));
  }
  if (job.state() == v1::JOB_STATE_FAILED) return Describe(job.error()).reason;
  return "";
}

}  // namespace

FieldList ResultFields(const v1::JobResult& result) {
  FieldList fields;
  if (result.has_quality()) {
    fields.emplace_back("perplexity", QualityText(result.quality().perplexity()));
    fields.emplace_back("agreement", Cat(Number(result.quality().top1_agreement() * 100, 4),
                                         "% same top token, KL ",
                                         Number(result.quality().kl_divergence(), 3), " nats"));
  }
  fields.emplace_back("bits a weight",
                      Cat(Number(result.bits().linears(), 4), " quantized linears, ",
                          Number(result.bits().file(), 4), " whole file"));
  const int64_t bytes = result.outputs().empty() ? 0 : result.outputs(0).bytes();
  fields.emplace_back("weights", Cat(Bytes(result.bits().dense_bytes()), " -> ", Bytes(bytes)));
  for (const v1::OutputSummary& output : result.outputs()) {
    fields.emplace_back("output", Cat(Plain(output.format()), "  ", Bytes(output.bytes()), "  ",
                                      Plain(output.compatibility())));
  }
  const double queued = result.timing().queue_s();  // the server's; a manifest has none
  fields.emplace_back("time", Cat(queued > 0 ? Cat("queued ", Seconds(queued), ", ") : "", "ran ",
                                  Seconds(result.timing().run_s())));
  fields.emplace_back("memory", Cat(Bytes(result.peak_rss_bytes()), " at most"));
  if (!result.artifact_uri().empty()) {
    fields.emplace_back("artifact", Plain(result.artifact_uri()));
  }
  if (result.quality_gate_failed()) fields.emplace_back("quality gate", "FAILED");
  return fields;
}

std::string JobText(const v1::QuantizationJob& job, WallTime now) {
  std::string head = Cat(ShortId(job.name()), "  ", StateWord(job.state()));
  if (!job.state_reason().empty()) head += Cat("  (", Plain(job.state_reason()), ")");
  FieldList fields = {{"name", job.name()}, {"method", MethodText(job.spec())}};
  if (!job.display_name().empty()) fields.emplace_back("title", Plain(job.display_name()));
  if (!job.labels().empty()) fields.emplace_back("labels", LabelsText(job.labels()));
  if (job.priority() != 0) fields.emplace_back("priority", Cat(job.priority()));
  AddTimes(job, now, fields);
  if (job.epoch() > 1) fields.emplace_back("attempts", Cat(job.epoch()));
  if (job.state() == v1::JOB_STATE_RUNNING) {
    if (!job.worker().empty()) fields.emplace_back("worker", Plain(job.worker()));
    fields.emplace_back("progress", ProgressText(job));
  }
  if (const std::string trace = TraceIdOf(job.traceparent()); !trace.empty()) {
    fields.emplace_back("trace", trace);
  }
  if (!job.result_of().empty()) {
    fields.emplace_back("result of", std::string(ShortId(job.result_of())));
  }
  if (job.has_result()) {
    for (auto& field : ResultFields(job.result())) fields.push_back(std::move(field));
  }
  if (job.has_error()) {
    const ErrorReport report = Describe(job.error());
    fields.emplace_back("error", Cat(report.reason, ": ", Plain(report.message)));
    if (!report.next.empty()) fields.emplace_back("advice", report.next);
  }
  if (const std::string next = NextStep(job); !next.empty()) fields.emplace_back("next", next);
  return head + "\n" + Fields(fields);
}

std::string JobTable(const std::vector<v1::QuantizationJob>& jobs, WallTime now) {
  std::vector<std::vector<std::string>> rows = {
      {"ID", "STATE", "METHOD", "AGE", "PROGRESS", "PERPLEXITY", "LABELS"}};
  for (const v1::QuantizationJob& job : jobs) {
    rows.push_back({std::string(ShortId(job.name())), StateWord(job.state()),
                    MethodText(job.spec()), Age(job.create_time(), now), ProgressText(job),
                    OutcomeText(job), LabelsText(job.labels())});
  }
  return Table(rows);
}

std::string QuoteText(const v1::Quote& quote, const v1::JobSpec& spec) {
  FieldList fields = {{"method", MethodText(spec)}};
  // A checkpoint that cannot be read has no numbers.
  if (quote.blocks() > 0) fields.emplace_back("blocks", Cat(quote.blocks()));
  if (quote.parameters() > 0) fields.emplace_back("parameters", Cat(quote.parameters()));
  if (quote.steps() > 0) fields.emplace_back("steps", Cat(quote.steps()));
  if (quote.host_memory_bytes() > 0) {
    fields.emplace_back("host memory", Cat(Bytes(quote.host_memory_bytes()), " at most"));
  }
  if (quote.device_memory_bytes() > 0) {
    fields.emplace_back("GPU memory",
                        Cat(Bytes(quote.device_memory_bytes()), " at most, if a GPU runs it"));
  }
  if (quote.bits_per_weight() > 0) {
    fields.emplace_back(
        "linears", Cat(Number(quote.bits_per_weight(), 4), " bits a weight as the method has it"));
  }
  for (const v1::OutputQuote& output : quote.outputs()) {
    fields.emplace_back(
        "output", Cat(FormatName(output.format()), "  ", Bytes(output.bytes()), "  ",
                      Number(output.bits_per_weight(), 4), " bits a weight in linears as stored"));
  }
  for (const std::string& problem : quote.problems()) {
    fields.emplace_back("problem", Plain(problem));
  }
  if (quote.problems().empty()) fields.emplace_back("next", "the same flags with `quantry submit`");
  return (quote.problems().empty() ? "this job can run\n" : "this job cannot run as it is\n") +
         Fields(fields);
}

}  // namespace quantry::cli
