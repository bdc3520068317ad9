#include "server/rpc/validation.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/recipes.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "server/rpc/method_validation.h"
#include "server/rpc/output_formats.h"
#include "server/rpc/spec_validation.h"
#include "server/rpc/violations.h"

namespace quantry::server {
namespace {

constexpr size_t kMaxLabelKeyBytes = 63;
constexpr size_t kMaxLabelValueBytes = 256;
constexpr size_t kMaxDisplayNameBytes = 256;
constexpr int kMaxPriority = 100;

bool IsLabelKey(std::string_view key) {
  if (key.empty() || key.size() > kMaxLabelKeyBytes || key[0] < 'a' || key[0] > 'z') return false;
  return key.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.-/") ==
         std::string_view::npos;
}

bool HasControlCharacter(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return true;
  }
  return false;
}

void CheckLabels(const google::protobuf::Map<std::string, std::string>& labels, Violations* out) {
  const std::string field = "quantization_job.labels";
  if (labels.size() > SpecLimits::kMaxLabels) {
    out->Wanted(field, absl::StrCat("at most ", SpecLimits::kMaxLabels, " labels"),
                absl::StrCat(labels.size()));
    return;
  }
  for (const auto& [key, value] : labels) {
    if (!IsLabelKey(key)) {
      out->Wanted(field, "keys of 1 to 63 characters a-z, 0-9, '_', '.', '-', '/', a letter first",
                  "'" + key + "'");
    } else if (value.size() > kMaxLabelValueBytes || HasControlCharacter(value)) {
      out->Wanted(absl::StrCat(field, "[", key, "]"),
                  "at most 256 bytes without control characters",
                  absl::StrCat(value.size(), " bytes"));
    }
  }
}

std::optional<Time> CheckExpireTime(const v1::QuantizationJob& job, Violations* out) {
  if (!job.has_expire_time()) return std::nullopt;
  constexpr std::int64_t kYear9999 = 253402300799;
  const std::int64_t whole = job.expire_time().seconds();
  out->Range("quantization_job.expire_time.seconds", whole, 0, kYear9999);
  out->Range("quantization_job.expire_time.nanos", job.expire_time().nanos(), 0, 999'999'999);
  if (whole < 0 || whole > kYear9999) return std::nullopt;
  return FromUnixMicros(0) + std::chrono::seconds(whole) +
         std::chrono::microseconds(job.expire_time().nanos() / 1000);
}

std::map<std::string, std::string> LabelsOf(const v1::QuantizationJob& job) {
  return {job.labels().begin(), job.labels().end()};
}

// "job-" and 12 random hex digits.
std::string NewJobId() {
  const std::string uuid = NewUuid4();
  return "job-" + uuid.substr(0, 8) + uuid.substr(9, 4);
}

void CheckResource(const v1::QuantizationJob& job, Violations* out) {
  if (job.display_name().size() > kMaxDisplayNameBytes || HasControlCharacter(job.display_name())) {
    out->Wanted("quantization_job.display_name", "at most 256 bytes without control characters",
                absl::StrCat(job.display_name().size(), " bytes"));
  }
  CheckLabels(job.labels(), out);
  out->Range("quantization_job.priority", job.priority(), -kMaxPriority, kMaxPriority);
}

// A recipe brings its own grid and calibration; the engine knows them.
bool RecipeDecides(const v1::Method& method) {
  return method.has_tesseraq() && !method.tesseraq().recipe().empty();
}

void DefaultGrid(v1::WeightGrid* grid) {
  if (grid->group_size() == 0) grid->set_group_size(128);
}

// The packed output that engines read, or the only packed one that can hold what
// the method makes, or the only one it has.
v1::OutputFormat DefaultOutput(const v1::Method& method,
                               std::span<const v1::MethodDescription> methods) {
  if (method.has_ptq161()) return v1::OUTPUT_FORMAT_QUANTRY;
  if (method.has_billm() || method.has_pbllm() || method.has_restore()) {
    return v1::OUTPUT_FORMAT_DENSE;
  }
  constexpr v1::OutputFormat kUsual = v1::OUTPUT_FORMAT_COMPRESSED_TENSORS;
  OutputContent content;
  if (const v1::WeightGrid* grid = GridOf(method); grid != nullptr) content.grid = *grid;
  content.online_rotation =
      RotatesOnline(method, FindRecipe(method, DescriptionOf(method, methods)));
  return WantedContent(kUsual, content).empty() ? kUsual : v1::OUTPUT_FORMAT_QUANTRY;
}

}  // namespace

void FillDefaults(v1::JobSpec* spec, std::span<const v1::MethodDescription> methods) {
  if (spec->has_calibration()) {
    v1::Calibration& calibration = *spec->mutable_calibration();
    if (calibration.format() == v1::TEXT_FORMAT_UNSPECIFIED) {
      calibration.set_format(v1::TEXT_FORMAT_TEXT);
    }
    if (!RecipeDecides(spec->method())) {
      if (calibration.samples() == 0) calibration.set_samples(kDefaultSamples);
      if (calibration.sequence_length() == 0) calibration.set_sequence_length(2048);
    }
    if (calibration.sampling() == v1::Calibration::SAMPLING_UNSPECIFIED) {
      calibration.set_sampling(v1::Calibration::SAMPLING_CONTIGUOUS);
    }
  }
  if (spec->has_evaluation()) {
    v1::Evaluation& evaluation = *spec->mutable_evaluation();
    if (evaluation.format() == v1::TEXT_FORMAT_UNSPECIFIED) {
      evaluation.set_format(v1::TEXT_FORMAT_TEXT);
    }
    if (evaluation.sequence_length() == 0 && !RecipeDecides(spec->method())) {
      evaluation.set_sequence_length(spec->has_calibration() ? spec->calibration().sequence_length()
                                                             : 2048);
    }
  }
  if (spec->has_preprocessing() && spec->preprocessing().format() == v1::TEXT_FORMAT_UNSPECIFIED) {
    spec->mutable_preprocessing()->set_format(v1::TEXT_FORMAT_TEXT);
  }
  v1::Method& method = *spec->mutable_method();
  if (method.has_rtn()) DefaultGrid(method.mutable_rtn()->mutable_grid());
  if (method.has_gptq()) DefaultGrid(method.mutable_gptq()->mutable_grid());
  if (method.has_omniquant()) DefaultGrid(method.mutable_omniquant()->mutable_grid());
  if (method.has_quarot()) DefaultGrid(method.mutable_quarot()->mutable_grid());
  if (method.has_signround()) DefaultGrid(method.mutable_signround()->mutable_grid());
  if (method.has_tesseraq() && method.tesseraq().recipe().empty()) {
    DefaultGrid(method.mutable_tesseraq()->mutable_grid());
  }
  if (method.has_awq()) {
    DefaultGrid(method.mutable_awq()->mutable_grid());
    v1::AwqMethod& awq = *method.mutable_awq();
    if (awq.scale_grid_points() == 0 && !awq.disable_scale_search()) awq.set_scale_grid_points(20);
  }
  if (spec->outputs().empty()) {
    spec->add_outputs()->set_format(DefaultOutput(method, methods));
  }
  if (spec->resources().device().empty()) spec->mutable_resources()->set_device("auto");
  if (spec->retry_policy().max_attempts() == 0) spec->mutable_retry_policy()->set_max_attempts(3);
}

std::string CanonicalBytes(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

std::string DigestOf(const google::protobuf::Message& message) {
  return Sha256Hex(CanonicalBytes(message));
}

absl::StatusOr<SubmitRequest> ValidateCreate(const v1::CreateQuantizationJobRequest& request,
                                             const SpecLimits& limits,
                                             std::span<const v1::MethodDescription> methods) {
  auto tenant = ParseTenantName(request.parent());
  if (!tenant.ok()) return tenant.status();
  const std::string& id = request.quantization_job_id();
  if (!id.empty()) {
    if (absl::Status status = ValidateJobId(id); !status.ok()) return status;
  }
  const v1::QuantizationJob& job = request.quantization_job();
  Violations violations;
  if (!request.request_id().empty() && !IsUuid(request.request_id())) {
    violations.Wanted("request_id", "a UUID", "'" + request.request_id() + "'");
  }
  CheckResource(job, &violations);
  SubmitRequest submit;
  submit.expire_time = CheckExpireTime(job, &violations);
  CheckSpec(job.spec(), limits, methods, &violations);
  if (request.reuse_result()) CheckReusable(job.spec(), &violations);
  if (absl::Status status = violations.ToStatus(Reason::kInvalidSpec); !status.ok()) return status;

  v1::CreateQuantizationJobRequest payload = request;
  payload.clear_request_id();
  payload.clear_validate_only();
  submit.key = {*tenant, id.empty() ? NewJobId() : id};
  submit.uid = NewUuid4();
  submit.request_id = request.request_id();
  submit.request_hash = DigestOf(payload);
  submit.display_name = job.display_name();
  submit.labels = LabelsOf(job);
  submit.spec = job.spec();
  FillDefaults(&submit.spec, methods);
  submit.spec_digest = DigestOf(submit.spec);
  submit.priority = job.priority();
  submit.reuse_result = request.reuse_result();
  return submit;
}

absl::StatusOr<UpdateRequest> ValidateUpdate(const v1::UpdateQuantizationJobRequest& request) {
  const v1::QuantizationJob& job = request.quantization_job();
  auto name = ParseJobName(job.name());
  if (!name.ok()) return name.status();
  UpdateRequest update;
  update.key = {name->tenant, name->id};
  update.etag = job.etag();
  Violations violations;
  if (request.update_mask().paths().empty()) {
    violations.Wanted("update_mask", "labels, priority or expire_time", "nothing");
  }
  for (const std::string& path : request.update_mask().paths()) {
    if (path == "labels") {
      CheckLabels(job.labels(), &violations);
      update.labels = LabelsOf(job);
    } else if (path == "priority") {
      violations.Range("quantization_job.priority", job.priority(), -kMaxPriority, kMaxPriority);
      update.priority = job.priority();
    } else if (path == "expire_time") {
      update.expire_time.emplace(CheckExpireTime(job, &violations));
    } else {
      violations.Wanted("update_mask", "labels, priority or expire_time", "'" + path + "'");
    }
  }
  if (absl::Status status = violations.ToStatus(Reason::kInvalidArgument); !status.ok()) {
    return status;
  }
  return update;
}

absl::StatusOr<int> PageSize(int requested, int normal) {
  if (requested < 0) {
    return MakeError(Reason::kInvalidArgument,
                     absl::StrCat("page_size: wanted 0 or more, got ", requested));
  }
  return requested == 0 ? normal : std::min(requested, kMaxPageSize);
}

}  // namespace quantry::server
