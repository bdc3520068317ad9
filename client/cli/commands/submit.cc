#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>

#include "client/cli/commands/commands.h"
#include "client/cli/errors.h"
#include "client/cli/job_text.h"
#include "client/cli/json.h"
#include "client/cli/names.h"
#include "client/cli/spec_check.h"
#include "client/cli/submit_options.h"
#include "client/cli/text.h"
#include "client/cli/upload.h"
#include "client/cli/wait.h"
#include "common/errors.h"
#include "common/ids.h"

namespace quantry::cli {
namespace {

// What a submit sends, put together step by step; each step fails before the
// next one costs anything.
struct Submission {
  v1::CreateQuantizationJobRequest request;
  std::vector<LocalFile> model_files;       // to upload; empty: a path or URI
  std::vector<LocalFile> calibration_file;  // none or one
  std::vector<LocalFile> evaluation_file;   // none or one
  std::vector<LocalFile> corpus_file;       // none or one

  bool uploads() const {
    return !model_files.empty() || !calibration_file.empty() || !evaluation_file.empty() ||
           !corpus_file.empty();
  }
};

bool IsUri(const std::string& text) { return text.find("://") != std::string::npos; }

absl::Status FindText(const char* flag, const std::string& path, v1::TextSource* source,
                      std::vector<LocalFile>& files) {
  if (path.empty()) return absl::OkStatus();
  if (IsUri(path)) {
    source->set_uri(path);
    return absl::OkStatus();
  }
  absl::StatusOr<LocalFile> file = FindTextFile(flag, path);
  if (!file.ok()) return file.status();
  files.push_back(*std::move(file));
  return absl::OkStatus();
}

// Local files and sources, without touching the server.
absl::Status FindSources(const SubmitOptions& options, Submission& submission) {
  v1::JobSpec* spec = submission.request.mutable_quantization_job()->mutable_spec();
  if (!options.model_path.empty()) spec->mutable_model()->set_local_path(options.model_path);
  if (!options.model_uri.empty()) spec->mutable_model()->set_uri(options.model_uri);
  if (IsUri(options.model_dir)) {
    spec->mutable_model()->set_uri(options.model_dir);
  } else if (!options.model_dir.empty()) {
    absl::StatusOr<std::vector<LocalFile>> files = FindModelFiles(options.model_dir);
    if (!files.ok()) return files.status();
    submission.model_files = *std::move(files);
  }
  if (spec->has_calibration()) {
    absl::Status status =
        FindText("--calibration", options.calibration,
                 spec->mutable_calibration()->mutable_source(), submission.calibration_file);
    if (!status.ok()) return status;
  }
  if (spec->has_preprocessing()) {
    absl::Status status =
        FindText("--preprocessing-corpus", options.preprocessing_corpus,
                 spec->mutable_preprocessing()->mutable_source(), submission.corpus_file);
    if (!status.ok()) return status;
  }
  if (!spec->has_evaluation()) return absl::OkStatus();
  return FindText("--evaluation", options.evaluation, spec->mutable_evaluation()->mutable_source(),
                  submission.evaluation_file);
}

absl::StatusOr<std::string> ReadConfig(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in || text.str().empty()) {
    return absl::InvalidArgumentError(
        Cat("--method-config: wanted a file with the method's JSON, cannot read \"", path, "\""));
  }
  return text.str();
}

absl::StatusOr<Submission> Prepare(const GlobalOptions& global, const SubmitOptions& options) {
  if (absl::Status status = CheckModelSource(options); !status.ok()) return status;
  SpecFlags flags = options.spec;
  absl::StatusOr<std::string> config = ReadConfig(options.method_config);
  if (!config.ok()) return config.status();
  flags.method_config = *std::move(config);
  flags.calibrate = !options.calibration.empty();
  flags.evaluate = !options.evaluation.empty();
  flags.preprocessing_corpus = !options.preprocessing_corpus.empty();
  absl::StatusOr<v1::JobSpec> spec = BuildSpec(flags);
  if (!spec.ok()) return spec.status();
  const auto labels = ParseLabels(options.labels);
  if (!labels.ok()) return labels.status();
  absl::StatusOr<std::string> parent = ResolveTenant(global.tenant);
  if (!parent.ok()) return parent.status();
  if (!options.id.empty()) {
    if (absl::Status status = ValidateJobId(options.id); !status.ok()) return status;
  }

  if (!options.request_id.empty() && !IsUuid(options.request_id)) {
    return absl::InvalidArgumentError(
        Cat("--request-id: wanted a UUID, got \"", options.request_id, "\""));
  }

  Submission submission;
  submission.request.set_parent(*std::move(parent));
  submission.request.set_quantization_job_id(options.id);
  submission.request.set_request_id(options.request_id.empty() ? NewUuid4() : options.request_id);
  submission.request.set_validate_only(options.validate_only);
  submission.request.set_reuse_result(options.reuse_result);
  v1::QuantizationJob* job = submission.request.mutable_quantization_job();
  job->set_display_name(options.title);
  job->set_priority(options.priority);
  job->mutable_labels()->insert(labels->begin(), labels->end());
  *job->mutable_spec() = *std::move(spec);
  if (absl::Status status = FindSources(options, submission); !status.ok()) return status;
  return submission;
}

absl::Status UploadSources(Connection& connection, StatusLine& line, Submission& submission) {
  std::vector<LocalFile> files = submission.model_files;
  for (const auto* more :
       {&submission.calibration_file, &submission.evaluation_file, &submission.corpus_file}) {
    files.insert(files.end(), more->begin(), more->end());
  }
  const auto blobs = Uploader(connection, line, submission.request.parent()).Upload(files);
  if (!blobs.ok()) return blobs.status();
  v1::JobSpec* spec = submission.request.mutable_quantization_job()->mutable_spec();
  auto next = blobs->begin();
  if (!submission.model_files.empty()) {
    auto* model = spec->mutable_model()->mutable_blobs()->mutable_files();
    model->Clear();
    for (size_t i = 0; i < submission.model_files.size(); ++i) *model->Add() = *next++;
  }
  if (!submission.calibration_file.empty()) {
    *spec->mutable_calibration()->mutable_source()->mutable_blob() = *next++;
  }
  if (!submission.evaluation_file.empty()) {
    *spec->mutable_evaluation()->mutable_source()->mutable_blob() = *next++;
  }
  if (!submission.corpus_file.empty()) {
    *spec->mutable_preprocessing()->mutable_source()->mutable_blob() = *next++;
  }
  return absl::OkStatus();
}

// What the server says no to anyway, before gigabytes are hashed and sent.
absl::Status CheckBeforeUpload(Connection& connection, const v1::JobSpec& spec) {
  v1::ListMethodsResponse methods;
  absl::Status status =
      connection.Call(connection.jobs(), &Connection::Jobs::ListMethods, v1::ListMethodsRequest(),
                      &methods, Connection::kEngineTime);
  return status.ok() ? CheckSpec(spec, methods) : status;
}

absl::StatusOr<v1::CreateQuantizationJobResponse> Create(Connection& connection, StatusLine& line,
                                                         Submission& submission, bool check) {
  v1::CreateQuantizationJobResponse response;
  for (int tries = 1;; ++tries) {
    if (submission.uploads()) {
      absl::Status status = UploadSources(connection, line, submission);
      if (!status.ok()) return status;
    }
    if (check && tries == 1) {
      absl::Status status = CheckByQuote(connection, line, submission.request);
      if (!status.ok()) return status;
    }
    absl::Status status = connection.Call(
        connection.jobs(), &Connection::Jobs::CreateQuantizationJob, submission.request, &response,
        submission.request.validate_only() ? Connection::kQuoteTime : std::chrono::seconds(0));
    if (status.ok()) return response;
    // Collected between upload and create: once more.
    if (!HasReason(status, Reason::kSourceMissing) || !submission.uploads() || tries > 1) {
      return submission.request.validate_only()
                 ? status
                 : NamingRequest(std::move(status), submission.request.request_id());
    }
  }
}

// Before anything is sent. The same request again, or another job's result, may be there already.
absl::Status CheckFolder(const SubmitOptions& options) {
  if (options.download.empty() || options.validate_only) return absl::OkStatus();
  const bool may_be_there = !options.request_id.empty() || options.reuse_result;
  return CheckDownload(options.download, options.id.empty() ? "JOB" : options.id, may_be_there);
}

ExitCode PrintQuote(Context& context, const v1::CreateQuantizationJobResponse& response) {
  const v1::Quote& quote = response.quote();
  if (context.global.json()) {
    context.env.out << Dump(MessageJson(quote), context.env.out_is_terminal);
  } else {
    context.env.out << QuoteText(quote, response.quantization_job().spec());
  }
  return quote.problems().empty() ? ExitCode::kOk : ExitCode::kUsage;
}

void PrintSubmitted(Context& context, const v1::QuantizationJob& job,
                    const std::string& request_id) {
  if (context.global.json()) {
    Json json = JobJson(job);
    json["request_id"] = request_id;
    context.env.out << Dump(json, context.env.out_is_terminal);
    return;
  }
  context.env.out << JobText(job, context.env.now()) << "  request id  " << request_id << "\n";
}

absl::StatusOr<ExitCode> RunSubmit(Context& context, const SubmitOptions& options) {
  absl::StatusOr<Submission> submission = Prepare(context.global, options);
  if (!submission.ok()) return submission.status();
  if (absl::Status status = CheckFolder(options); !status.ok()) return status;
  Connection connection(context.env, context.global);
  if (options.trace) connection.SampleTrace();
  StatusLine line(context.env, context.global.quiet);
  if (submission->uploads()) {
    const absl::Status status =
        CheckBeforeUpload(connection, submission->request.quantization_job().spec());
    if (!status.ok()) return status;
  }
  const bool check = options.check && !options.validate_only;
  const auto response = Create(connection, line, *submission, check);
  if (!response.ok()) return response.status();
  if (options.validate_only) return PrintQuote(context, *response);
  const std::string& request_id = submission->request.request_id();
  const v1::QuantizationJob& job = response->quantization_job();
  if (!options.wait && options.wait_timeout_s <= 0 && options.download.empty()) {
    PrintSubmitted(context, job, request_id);
    return ExitCode::kOk;
  }
  line.Say(Cat("submitted ", job.name(), "  (request id ", request_id, ")"));
  return WaitForJob(context, connection, line, job.name(),
                    {.timeout_s = options.wait_timeout_s,
                     .download = options.download,
                     .request_id = request_id});
}

}  // namespace

void AddSubmit(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand("submit", "Quantize a model: upload it, queue a job");
  auto options = std::make_shared<SubmitOptions>();
  AddSpecOptions(*command, *options);
  AddJobOptions(*command, *options);
  command->footer(SubmitFooter());
  Bind(*command, chosen, [options](Context& context) { return RunSubmit(context, *options); });
}

void AddQuote(CLI::App& app, Action& chosen) {
  CLI::App* command = app.add_subcommand(
      "quote", "What a job would cost (memory, bytes, steps), and whether it can run");
  auto options = std::make_shared<SubmitOptions>();
  AddSpecOptions(*command, *options);
  command->footer(QuoteFooter());
  options->validate_only = true;
  Bind(*command, chosen, [options](Context& context) { return RunSubmit(context, *options); });
}

}  // namespace quantry::cli
