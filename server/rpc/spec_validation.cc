#include "server/rpc/spec_validation.h"

#include <climits>
#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/device_name.h"
#include "common/digest.h"
#include "common/hub_uri.h"
#include "common/recipes.h"
#include "server/jobs/job.h"
#include "server/rpc/method_validation.h"
#include "server/rpc/output_formats.h"

namespace quantry::server {
namespace {

constexpr std::string_view kSpec = "quantization_job.spec.";
constexpr int kMaxSamples = 65536;
constexpr int kMaxSequenceLength = 131072;
constexpr int kMaxWindows = 1 << 20;
constexpr int kMaxPathBytes = 4096;
constexpr std::int64_t kMaxSeconds = std::int64_t{365} * 86400;

std::string At(std::string_view path) { return std::string(kSpec) + std::string(path); }

bool IsCleanRelativePath(std::string_view path) {
  if (path.empty() || path.size() > 1024 || path.front() == '/' || path.back() == '/') return false;
  if (path.find_first_of(std::string_view("\\\0", 2)) != std::string_view::npos) return false;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > NAME_MAX) return false;
    begin = end + 1;
  }
  return true;
}

void CheckBlob(const std::string& field, const v1::BlobFile& blob, const SpecLimits& limits,
               Violations* out) {
  if (!IsCleanRelativePath(blob.path())) {
    out->Wanted(field + ".path",
                "a relative path without '..', '.', '\\' or NUL, of names of at most 255 bytes",
                "'" + blob.path() + "'");
  }
  if (!IsSha256Hex(blob.sha256())) {
    out->Wanted(field + ".sha256", "64 lower-case hex digits", "'" + blob.sha256() + "'");
  }
  out->Range(field + ".size_bytes", blob.size_bytes(), 0, limits.max_blob_bytes);
}

// `hub`: what a model may come from, too.
void CheckUri(const std::string& field, const std::string& uri, const std::string& hub,
              Violations* out) {
  // Escapes in a file: URI could name another path here than at the worker.
  if (uri.rfind("file:", 0) == 0 && uri.find('%') != std::string::npos) {
    return out->Wanted(field, "a file: URI without %-escapes; use local_path", "'" + uri + "'");
  }
  for (const char* scheme : {"file:///", "s3://", "gs://", "abfs://"}) {
    if (uri.rfind(scheme, 0) == 0 && uri.size() <= kMaxPathBytes &&
        uri.find('\0') == std::string::npos) {
      return;
    }
  }
  out->Wanted(field,
              absl::StrCat("file:///, s3://, gs://", hub, " or abfs:// and at most 4096 bytes"),
              "'" + uri + "'");
}

void CheckHubUri(const std::string& field, const std::string& uri, Violations* out) {
  if (ParseHubUri(uri).ok()) return;
  out->Wanted(field, "hf://ORG/NAME or hf://ORG/NAME@REVISION", "'" + uri + "'");
}

void CheckLocalPath(const std::string& field, const std::string& path, Violations* out) {
  if (path.empty() || path.front() != '/' || path.size() > kMaxPathBytes ||
      path.find('\0') != std::string::npos) {
    out->Wanted(field, "an absolute path of at most 4096 bytes", "'" + path + "'");
  }
}

// A path cannot be a file and the folder of another.
void CheckFolders(const std::string& field, const std::set<std::string>& paths, Violations* out) {
  for (const std::string& path : paths) {
    for (size_t end = path.find('/'); end != std::string::npos; end = path.find('/', end + 1)) {
      const std::string folder = path.substr(0, end);
      if (paths.count(folder) == 0) continue;
      return out->Wanted(field, "each path a file or a folder",
                         absl::StrCat("'", folder, "' and '", path, "'"));
    }
  }
}

void CheckModel(const v1::ModelSource& model, const SpecLimits& limits, Violations* out) {
  const std::string field = At("model");
  switch (model.kind_case()) {
    case v1::ModelSource::kLocalPath:
      return CheckLocalPath(field + ".local_path", model.local_path(), out);
    case v1::ModelSource::kUri:
      if (IsHubUri(model.uri())) return CheckHubUri(field + ".uri", model.uri(), out);
      return CheckUri(field + ".uri", model.uri(), ", hf://ORG/NAME", out);
    case v1::ModelSource::kBlobs:
      break;
    case v1::ModelSource::KIND_NOT_SET:
      return out->Wanted(field, "one of local_path, uri, blobs", "nothing");
  }
  const auto& files = model.blobs().files();
  out->Range(field + ".blobs.files", files.size(), 1, SpecLimits::kMaxBlobFiles);
  std::set<std::string> paths;
  for (int i = 0; i < files.size(); ++i) {
    const std::string name = absl::StrCat(field, ".blobs.files[", i, "]");
    CheckBlob(name, files[i], limits, out);
    if (!paths.insert(files[i].path()).second) {
      out->Wanted(name + ".path", "each path once", "'" + files[i].path() + "' again");
    }
  }
  CheckFolders(field + ".blobs.files", paths, out);
}

void CheckText(const std::string& field, const v1::TextSource& text, const SpecLimits& limits,
               Violations* out) {
  switch (text.kind_case()) {
    case v1::TextSource::kLocalPath:
      return CheckLocalPath(field + ".local_path", text.local_path(), out);
    case v1::TextSource::kUri:
      return CheckUri(field + ".uri", text.uri(), "", out);
    case v1::TextSource::kBlob:
      return CheckBlob(field + ".blob", text.blob(), limits, out);
    case v1::TextSource::KIND_NOT_SET:
      return out->Wanted(field, "one of local_path, uri, blob", "nothing");
  }
}

// A window of one token predicts nothing.
void CheckLength(const std::string& field, int length, Violations* out) {
  if (length == 0 || (length >= 2 && length <= kMaxSequenceLength)) return;
  out->Wanted(field, absl::StrCat("0 (the default) or at least 2, at most ", kMaxSequenceLength),
              absl::StrCat(length));
}

void CheckRecipe(const v1::Method& method, const v1::MethodDescription& description,
                 Violations* out) {
  for (const RecipeConflict& conflict : FindRecipeConflicts(method, description)) {
    out->Wanted(At(conflict.field), conflict.wanted, conflict.got);
  }
}

void CheckCalibration(const v1::JobSpec& spec, const SpecLimits& limits, Violations* out) {
  const std::string field = At("calibration");
  if (!spec.has_calibration()) {
    const v1::Method& method = spec.method();
    const bool turns = method.has_quarot() && !method.quarot().gptq();  // and rounds to nearest
    if (!turns && !method.has_rtn() && method.kind_case() != v1::Method::KIND_NOT_SET) {
      const std::string& name =
          v1::Method::descriptor()->FindFieldByNumber(method.kind_case())->name();
      out->Wanted(field, absl::StrCat("a text to calibrate with: method ", name, " needs one"),
                  "nothing");
    }
    return;
  }
  const v1::Calibration& calibration = spec.calibration();
  CheckText(field + ".source", calibration.source(), limits, out);
  out->Range(field + ".samples", calibration.samples(), 0, kMaxSamples);
  CheckLength(field + ".sequence_length", calibration.sequence_length(), out);
  if (!v1::TextFormat_IsValid(calibration.format())) {
    out->Wanted(field + ".format", "a known TextFormat", absl::StrCat(calibration.format()));
  }
  if (!v1::Calibration::Sampling_IsValid(calibration.sampling())) {
    out->Wanted(field + ".sampling", "a known Sampling", absl::StrCat(calibration.sampling()));
  }
}

void CheckEvaluation(const v1::JobSpec& spec, const SpecLimits& limits, Violations* out) {
  const std::string field = At("evaluation");
  if (spec.has_evaluation()) {
    const v1::Evaluation& evaluation = spec.evaluation();
    CheckText(field + ".source", evaluation.source(), limits, out);
    CheckLength(field + ".sequence_length", evaluation.sequence_length(), out);
    out->Range(field + ".windows", evaluation.windows(), 0, kMaxWindows);
    if (!v1::TextFormat_IsValid(evaluation.format())) {
      out->Wanted(field + ".format", "a known TextFormat", absl::StrCat(evaluation.format()));
    }
  }
  const v1::QualityGate& gate = spec.quality_gate();
  const std::string gate_field = At("quality_gate");
  for (const auto& [name, value] :
       {std::pair{".max_perplexity_ratio", gate.max_perplexity_ratio()},
        std::pair{".max_perplexity_increase", gate.max_perplexity_increase()}}) {
    if (!std::isfinite(value) || value < 0) {
      out->Wanted(gate_field + name, "a finite number of 0 or more", absl::StrCat(value));
    } else if (value > 0 && !spec.has_evaluation()) {
      out->Wanted(field, "an evaluation: the quality gate needs a measurement", "nothing");
    }
  }
}

// 0 stands for the engine's default.
void CheckLora(const std::string& field, const v1::LoraOptions& lora, Violations* out) {
  constexpr double kMostAlpha = 1e6;
  constexpr double kMostDropout = 0.99;
  constexpr int kDefaultSteps = 10000;
  const auto number = [&](const char* name, double value, double most) {
    if (value >= 0 && value <= most) return;
    out->Wanted(absl::StrCat(field, ".", name), absl::StrCat("0 (the default) to ", most),
                absl::StrCat(value));
  };
  out->Range(field + ".rank", lora.rank(), 0, kMaxSamples);
  out->Range(field + ".steps", lora.steps(), 0, kMaxIterations);
  out->Range(field + ".accumulation", lora.accumulation(), 0, kMaxBatch);
  out->Range(field + ".warmup_steps", lora.warmup_steps(), 0, kMaxIterations);
  const int steps = lora.steps() == 0 ? kDefaultSteps : lora.steps();
  if (lora.warmup_steps() >= steps && steps > 0) {
    out->Wanted(field + ".warmup_steps", absl::StrCat("below steps, ", steps),
                absl::StrCat(lora.warmup_steps()));
  }
  if (lora.dropout() != -1 && !(lora.dropout() >= 0 && lora.dropout() <= kMostDropout)) {
    out->Wanted(field + ".dropout",
                absl::StrCat("0 (the default) to ", kMostDropout, ", or -1 (none)"),
                absl::StrCat(lora.dropout()));
  }
  number("alpha", lora.alpha(), kMostAlpha);
  number("learning_rate", lora.learning_rate(), 1);
  number("clip_norm", lora.clip_norm(), kMostAlpha);
}

void CheckPreprocessing(const v1::JobSpec& spec, const SpecLimits& limits, Violations* out) {
  const std::string field = At("preprocessing");
  if (!spec.has_preprocessing()) {
    const v1::Ptq161Method& ptq161 = spec.method().ptq161();
    const bool mask = ptq161.first_pass_mask() && !ptq161.disable_mask();
    if (!mask && !spec.method().has_restore()) return;
    return out->Wanted(field,
                       absl::StrCat("a corpus to restore the model with: ",
                                    mask ? "first_pass_mask" : "method restore", " needs one"),
                       "nothing");
  }
  // Its first_pass is a Ptq161Method of one pass.
  if (spec.method().restore().first_pass().first_pass_mask()) {
    out->Wanted(At("method.restore.first_pass.first_pass_mask"),
                "nothing, as it has no effect here: there is no second pass (leave it out)",
                "true");
  }
  const v1::Preprocessing& preprocessing = spec.preprocessing();
  CheckText(field + ".source", preprocessing.source(), limits, out);
  CheckLength(field + ".sequence_length", preprocessing.sequence_length(), out);
  if (!v1::TextFormat_IsValid(preprocessing.format())) {
    out->Wanted(field + ".format", "a known TextFormat", absl::StrCat(preprocessing.format()));
  }
  CheckLora(field + ".lora", preprocessing.lora(), out);
}

// The method's grid with what its recipe adds; nullopt when it has none, or
// when nobody here knows its bits.
std::optional<v1::WeightGrid> WholeGrid(const v1::Method& method,
                                        const v1::RecipeDescription* recipe) {
  const v1::WeightGrid* given = GridOf(method);
  if (given == nullptr) return std::nullopt;
  v1::WeightGrid grid = *given;
  if (grid.bits() == 0 && recipe != nullptr) {
    grid.set_bits(recipe->bits() == 0 ? kOpenBits : recipe->bits());
  }
  if (grid.bits() == 0 && !RecipeName(method).empty()) return std::nullopt;
  return grid;
}

void CheckOutputs(const v1::JobSpec& spec, const OutputContent& content,
                  const v1::MethodDescription& method, Violations* out) {
  const std::string field = At("outputs");
  out->Range(field, spec.outputs_size(), 0, 8);
  std::set<int> seen;
  for (int i = 0; i < spec.outputs_size(); ++i) {
    const v1::OutputFormat format = spec.outputs(i).format();
    const std::string name = absl::StrCat(field, "[", i, "].format");
    if (format == v1::OUTPUT_FORMAT_UNSPECIFIED || !v1::OutputFormat_IsValid(format)) {
      out->Wanted(name, "one of " + KnownFormats(), absl::StrCat(format));
      continue;
    }
    if (!seen.insert(format).second) {
      out->Wanted(name, "each format once", WordOf(format) + " again");
    }
    if (!Writes(method, format)) {
      out->Wanted(name,
                  absl::StrCat("one that method ", method.name(), " can write (",
                               FormatsHolding(content, method), ")"),
                  WordOf(format));
      continue;
    }
    const std::string wanted = WantedContent(format, content);
    if (wanted.empty()) continue;
    out->Wanted(name,
                absl::StrCat(wanted, " for ", WordOf(format), " (formats that can hold this: ",
                             FormatsHolding(content, method), ")"),
                ContentText(content));
  }
}

void CheckDuration(const std::string& field, const google::protobuf::Duration& duration,
                   Violations* out) {
  out->Range(field + ".seconds", duration.seconds(), 0, kMaxSeconds);
  out->Range(field + ".nanos", duration.nanos(), 0, 999'999'999);
}

void CheckResources(const v1::JobSpec& spec, Violations* out) {
  const v1::ResourceRequest& resources = spec.resources();
  const std::string field = At("resources");
  constexpr std::int64_t kMaxMemory = std::int64_t{1} << 50;
  out->Range(field + ".gpu_count", resources.gpu_count(), 0, 64);
  out->Range(field + ".min_gpu_memory_bytes", resources.min_gpu_memory_bytes(), 0, kMaxMemory);
  out->Range(field + ".host_memory_bytes", resources.host_memory_bytes(), 0, kMaxMemory);
  out->Range(field + ".threads", resources.threads(), 0, 1024);
  if (!IsDeviceName(resources.device())) {
    out->Wanted(field + ".device", "auto, cpu, cuda or cuda:N", "'" + resources.device() + "'");
  }
  const std::string limits = At("stop_limits");
  CheckDuration(limits + ".max_run", spec.stop_limits().max_run(), out);
  CheckDuration(limits + ".max_pending", spec.stop_limits().max_pending(), out);
  CheckDuration(limits + ".max_no_progress", spec.stop_limits().max_no_progress(), out);
  out->Range(At("retry_policy.max_attempts"), spec.retry_policy().max_attempts(), 0, 100);
}

}  // namespace

const v1::MethodDescription& DescriptionOf(const v1::Method& method,
                                           std::span<const v1::MethodDescription> methods) {
  const std::string name = MethodName(method);
  for (const v1::MethodDescription& row : methods) {
    if (row.name() == name) return row;
  }
  return v1::MethodDescription::default_instance();
}

void CheckSpec(const v1::JobSpec& spec, const SpecLimits& limits,
               std::span<const v1::MethodDescription> methods, Violations* violations) {
  const auto size = static_cast<std::int64_t>(spec.ByteSizeLong());
  if (size > SpecLimits::kMaxSpecBytes) {
    violations->Wanted("quantization_job.spec",
                       absl::StrCat("at most ", SpecLimits::kMaxSpecBytes, " bytes"),
                       absl::StrCat(size));
    return;
  }
  CheckModel(spec.model(), limits, violations);
  const v1::MethodDescription& description = DescriptionOf(spec.method(), methods);
  const v1::RecipeDescription* recipe = FindRecipe(spec.method(), description);
  CheckMethod(spec, recipe, violations);
  CheckRecipe(spec.method(), description, violations);
  CheckCalibration(spec, limits, violations);
  CheckEvaluation(spec, limits, violations);
  CheckPreprocessing(spec, limits, violations);
  CheckOutputs(spec, {WholeGrid(spec.method(), recipe), RotatesOnline(spec.method(), recipe)},
               description, violations);
  CheckResources(spec, violations);
}

void CheckReusable(const v1::JobSpec& spec, Violations* violations) {
  const auto refuse = [&](const std::string& field, const std::string& got) {
    violations->Wanted("reuse_result",
                       "sources whose content is known when the job is submitted: uploads, or "
                       "hf:// with a commit",
                       field + " as a " + got);
  };
  const v1::ModelSource& model = spec.model();
  if (model.has_local_path()) refuse("spec.model", "local_path");
  const auto hub = ParseHubUri(model.uri());
  if (model.has_uri() && !(hub.ok() && hub->pinned())) refuse("spec.model", "uri");
  const std::pair<const char*, const v1::TextSource*> texts[] = {
      {"spec.calibration", &spec.calibration().source()},
      {"spec.evaluation", &spec.evaluation().source()},
      {"spec.preprocessing", &spec.preprocessing().source()}};
  for (const auto& [field, text] : texts) {
    if (text->has_local_path()) refuse(field, "local_path");
    if (text->has_uri()) refuse(field, "uri");
  }
}

}  // namespace quantry::server
