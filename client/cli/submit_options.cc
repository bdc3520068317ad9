#include "client/cli/submit_options.h"

#include <CLI/CLI.hpp>

#include "client/cli/method_flags.h"
#include "client/cli/options.h"
#include "client/cli/preprocessing_options.h"

namespace quantry::cli {
namespace {

void AddModelOptions(CLI::App& command, SubmitOptions& o) {
  command
      .add_option("MODEL_DIR", o.model_dir,
                  "Folder on this machine with config.json, *.safetensors and tokenizer.json; "
                  "uploaded by content hash, so only what the server lacks is sent. Or a URI")
      ->type_name("DIR");
  command
      .add_option(
          "--model-path", o.model_path,
          "Folder on the server's machine below one of its local roots; nothing is uploaded")
      ->type_name("PATH")
      ->group("Model");
  command
      .add_option(
          "--model-uri", o.model_uri,
          "file://, s3://, gs:// or abfs:// prefix, or hf://ORG/NAME[@REVISION] of a model hub")
      ->type_name("URI")
      ->group("Model");
}

void AddMethodFlags(CLI::App& command, SubmitOptions& o) {
  for (const MethodFlag& flag : MethodFlags()) {
    command
        .add_option_function<std::string>(
            flag.flag,
            [&o, field = std::string(flag.field)](const std::string& word) {
              o.spec.method_fields[field] = word;
            },
            flag.help)
        ->type_name(flag.type)
        ->group("Method");
  }
}

void AddMethodOptions(CLI::App& command, SubmitOptions& o) {
  Choices(command.add_option("--method", o.spec.method, "See `quantry methods`"), MethodNames())
      ->group("Method");
  command.add_option("--bits", o.spec.bits, "Bits of one weight. Default: the recipe's, else 4")
      ->type_name("N")
      ->group("Method");
  command
      .add_option("--group-size", o.spec.group_size,
                  "Columns that share one scale: 32, 64, 128 ... or channel (= -1). Default: the "
                  "recipe's, else 128")
      ->type_name("N|channel")
      ->group("Method");
  command
      .add_flag_function(
          "--symmetric", [&o](int64_t count) { o.spec.symmetric = count > 0; },
          "Zero point fixed in the middle. Default: --symmetric=false")
      ->group("Method");
  AddMethodFlags(command, o);
  command
      .add_flag_function(
          "--zero-point-at-least-one",
          [&o](int64_t count) { o.spec.zero_point_at_least_one = count > 0; },
          "No zero point of 0, as --format gptq-v1 needs unless --symmetric. Default: false")
      ->group("Method");
  command
      .add_option("--activation-bits", o.spec.activation_bits,
                  "Quantize the input of every linear too, per token while the model runs: 2 to 8. "
                  "Default: 16, left alone")
      ->type_name("N")
      ->group("Method");
  command
      .add_option("--method-config", o.method_config,
                  "Every parameter of the method as JSON, for example "
                  "{\"awq\":{\"grid\":{\"bits\":4,\"groupSize\":64}}}; flags win over it")
      ->type_name("FILE")
      ->group("Method");
  command.add_option("--seed", o.spec.seed, "Same inputs and seed, same bytes. Default: 0")
      ->type_name("N")
      ->group("Method");
  Choices(command.add_option(
              "--format", o.spec.formats,
              "Output layout; repeat for several. awq holds 4 bits, int4-carrier 2 and 3. "
              "Default: compressed-tensors, quantry where that cannot hold the result, dense where "
              "the method writes nothing else"),
          FormatNames())
      ->take_all()
      ->allow_extra_args(false)
      ->group("Method");
}

void AddCalibrationOptions(CLI::App& command, SubmitOptions& o) {
  command
      .add_option("--calibration", o.calibration, "Text to calibrate with: a file here, or a URI")
      ->type_name("FILE")
      ->group("Calibration");
  Choices(command.add_option("--calibration-format", o.spec.calibration_format,
                             "UTF-8 text, or JSON token ids. Default: text"),
          {"text", "tokens"})
      ->group("Calibration");
  command
      .add_option("--calibration-samples", o.spec.calibration_samples,
                  "Windows to take. Default: the recipe's, else 128")
      ->check(Positive())
      ->type_name("N")
      ->group("Calibration");
  command
      .add_option("--calibration-length", o.spec.calibration_length,
                  "Tokens a window. Default: the recipe's, else 2048")
      ->check(Positive())
      ->type_name("N")
      ->group("Calibration");
  Choices(command.add_option("--calibration-sampling", o.spec.calibration_sampling,
                             "The first windows in order, or random starts drawn from --seed. "
                             "Default: contiguous"),
          {"contiguous", "random"})
      ->group("Calibration");
}

void AddEvaluationOptions(CLI::App& command, SubmitOptions& o) {
  command
      .add_option("--evaluation", o.evaluation,
                  "Text to measure perplexity on, before and after: a file here, or a URI")
      ->type_name("FILE")
      ->group("Evaluation");
  Choices(command.add_option("--evaluation-format", o.spec.evaluation_format,
                             "UTF-8 text, or JSON token ids. Default: text"),
          {"text", "tokens"})
      ->group("Evaluation");
  command
      .add_option("--evaluation-length", o.spec.evaluation_length,
                  "Tokens a window. Default: the calibration's")
      ->check(Positive())
      ->type_name("N")
      ->group("Evaluation");
  command
      .add_option("--evaluation-windows", o.spec.evaluation_windows,
                  "Use the first N windows; 0 = all. Default: 0")
      ->check(NotNegative())
      ->type_name("N")
      ->group("Evaluation");
  command
      .add_option("--max-perplexity-ratio", o.spec.max_perplexity_ratio,
                  "Fail the job (and keep the artifact, marked) when quantized / dense is above it")
      ->check(Positive())
      ->type_name("X")
      ->group("Evaluation");
  command
      .add_option("--max-perplexity-increase", o.spec.max_perplexity_increase,
                  "The same for quantized - dense")
      ->check(Positive())
      ->type_name("X")
      ->group("Evaluation");
}

void AddResourceOptions(CLI::App& command, SubmitOptions& o) {
  command.add_option("--device", o.spec.device, "auto, cpu, cuda or cuda:N. Default: auto")
      ->type_name("NAME")
      ->group("Resources");
  command.add_option("--threads", o.spec.threads, "CPU threads. Default: the worker's share")
      ->check(NotNegative())
      ->type_name("N")
      ->group("Resources");
  command.add_option("--gpus", o.spec.gpus, "GPUs the job needs. Default: 0, a CPU is fine")
      ->check(NotNegative())
      ->type_name("N")
      ->group("Resources");
  command.add_option("--gpu-memory", o.spec.gpu_memory_gib, "GiB each GPU must have")
      ->check(CLI::Range(0.0, 1e6))
      ->type_name("GIB")
      ->group("Resources");
}

void AddStopOptions(CLI::App& command, SubmitOptions& o) {
  const auto add = [&command](const char* flag, double& seconds, const char* help) {
    command.add_option(flag, seconds, help)
        ->check(NotNegativeSeconds())
        ->type_name("SECONDS")
        ->group("Stop limits");
  };
  add("--max-run", o.spec.max_run_s, "End the job after this long of running. Default: no limit");
  add("--max-pending", o.spec.max_pending_s,
      "End the job when it has waited in the queue for this long. Default: no limit");
  add("--max-no-progress", o.spec.max_no_progress_s,
      "Take the job from its worker after this long without a step or a byte moved. Default: the "
      "server's, 1800 unless it says otherwise");
}

}  // namespace

void AddSpecOptions(CLI::App& command, SubmitOptions& options) {
  AddModelOptions(command, options);
  AddMethodOptions(command, options);
  AddCalibrationOptions(command, options);
  AddPreprocessingOptions(command, options);
  AddEvaluationOptions(command, options);
  AddResourceOptions(command, options);
  AddStopOptions(command, options);
}

void AddJobOptions(CLI::App& command, SubmitOptions& o) {
  command.add_option("--id", o.id, "Name of the job: 4-63 of a-z, 0-9, '-'. Default: made up")
      ->type_name("ID")
      ->group("Job");
  command
      .add_option("--request-id", o.request_id,
                  "UUID; the same one again returns the same job. Default: a fresh one, printed, "
                  "also when the server did not answer")
      ->type_name("UUID")
      ->group("Job");
  command.add_option("--title", o.title, "Free text shown with the job")
      ->type_name("TEXT")
      ->group("Job");
  command.add_option("--label", o.labels, "Label to find it by; repeat for several")
      ->take_all()
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE")
      ->group("Job");
  command
      .add_option("--priority", o.priority,
                  "-100..100, higher first among the tenant's jobs. Default: 0")
      ->check(CLI::Range(-100, 100))
      ->type_name("N")
      ->group("Job");
  command.add_flag("--validate-only", o.validate_only, "Only say what it would cost (= quote)")
      ->group("Job");
  command
      .add_flag("--check,!--no-check", o.check,
                "Ask for a quote first and refuse at once what the model cannot do (group size, "
                "architecture, shapes). Where the server has the files; 5 seconds at most, then it "
                "says so and queues the job all the same. Default: check")
      ->group("Job");
  command
      .add_flag("--reuse-result", o.reuse_result,
                "Take the result of a job with the same spec and engine version: at once when it "
                "succeeded, with its end when it runs. Uploads only. Default: compute again")
      ->group("Job");
  command
      .add_flag("--trace", o.trace,
                "Record the time of every stage and block as report/trace.json (OTLP). The trace "
                "is $TRACEPARENT's, or a new one")
      ->group("Job");
  command.add_flag("--wait,--follow", o.wait, "Stay until the job ends; Ctrl-C leaves it running")
      ->group("Job");
  command
      .add_option("--wait-timeout", o.wait_timeout_s,
                  "Wait, but leave after this many seconds with exit code 8")
      ->check(PositiveSeconds())
      ->type_name("SECONDS")
      ->group("Job");
  command.add_option("--download", o.download, "Wait, then pull the artifact into this folder")
      ->type_name("DIR")
      ->group("Job");
}

absl::Status CheckModelSource(const SubmitOptions& options) {
  const int given = static_cast<int>(!options.model_dir.empty()) +
                    static_cast<int>(!options.model_path.empty()) +
                    static_cast<int>(!options.model_uri.empty());
  if (given == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      given == 0 ? "wanted a model: MODEL_DIR, --model-path or --model-uri, got none"
                 : "wanted one model: give only one of MODEL_DIR, --model-path and --model-uri");
}

const char* SubmitFooter() {
  return R"(
Examples:
  Quantize a folder to 4 bits, measure it, wait for the end:
    quantry submit ./model --method awq --bits 4 --group-size 128 --calibration train.txt \
        --evaluation test.txt --wait
  Queue it and go home; look later:
    quantry submit ./model --method awq --calibration train.txt --id nightly
    quantry watch nightly
  In a pipeline: one JSON object on stdout, exit code 0 only for SUCCEEDED, safe to repeat:
    quantry submit ./model --method rtn --id step-42 --request-id "$UUID" --wait --output json
  The same spec may have been computed already: take that result, or compute it:
    quantry submit ./model --method awq --calibration train.txt --reuse-result --wait
  A model that lies on the server, several outputs, a quality gate:
    quantry submit --model-path /models/llama --method awq --calibration train.txt \
        --evaluation test.txt --format compressed-tensors --format quantry --max-perplexity-ratio 1.05
)";
}

const char* QuoteFooter() {
  return R"(
Takes the flags of submit that decide the result. A folder is uploaded (once: a submit after it
sends nothing again), no job is made. Exit code 0 = it can run, 2 = it cannot, with the reasons.

Example:
  quantry quote ./model --method awq --bits 4 --group-size 128 --calibration train.txt
)";
}

}  // namespace quantry::cli
