#include "server/rpc/validation.h"

#include <functional>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <span>
#include <utility>

#include "common/errors.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "server/rpc/violations.h"

namespace quantry::server {
namespace {

using Request = v1::CreateQuantizationJobRequest;

v1::BlobFile Blob(const std::string& path) {
  v1::BlobFile blob;
  blob.set_path(path);
  blob.set_sha256(std::string(64, 'a'));
  blob.set_size_bytes(10);
  return blob;
}

Request ValidRequest() {
  Request request;
  request.set_parent("tenants/acme");
  request.set_quantization_job_id("my-job");
  v1::JobSpec& spec = *request.mutable_quantization_job()->mutable_spec();
  *spec.mutable_model()->mutable_blobs()->add_files() = Blob("config.json");
  spec.mutable_method()->mutable_awq()->mutable_grid()->set_bits(4);
  *spec.mutable_calibration()->mutable_source()->mutable_blob() = Blob("text");
  return request;
}

std::vector<google::rpc::BadRequest::FieldViolation> ViolationsOf(const absl::Status& status) {
  const google::rpc::Status proto = ToRpcStatus(status);
  for (const auto& detail : proto.details()) {
    google::rpc::BadRequest bad;
    if (detail.UnpackTo(&bad))
      return {bad.field_violations().begin(), bad.field_violations().end()};
  }
  return {};
}

TEST(ValidateCreate, FillsDefaultsAndDigest) {
  const auto submit = ValidateCreate(ValidRequest(), {});
  ASSERT_TRUE(submit.ok()) << submit.status();
  EXPECT_EQ(submit->key, (JobKey{"acme", "my-job"}));
  EXPECT_EQ(submit->spec.calibration().samples(), 128);
  EXPECT_EQ(submit->spec.calibration().sequence_length(), 2048);
  EXPECT_EQ(submit->spec.calibration().format(), v1::TEXT_FORMAT_TEXT);
  EXPECT_EQ(submit->spec.method().awq().grid().group_size(), 128);
  EXPECT_EQ(submit->spec.method().awq().scale_grid_points(), 20);
  ASSERT_EQ(submit->spec.outputs_size(), 1);
  EXPECT_EQ(submit->spec.outputs(0).format(), v1::OUTPUT_FORMAT_COMPRESSED_TENSORS);
  EXPECT_EQ(submit->spec.resources().device(), "auto");
  EXPECT_EQ(submit->spec.retry_policy().max_attempts(), 3);
  EXPECT_EQ(submit->spec_digest.size(), 64u);
}

TEST(ValidateCreate, DefaultsWrittenOutGiveTheSameDigest) {
  const auto implicit = ValidateCreate(ValidRequest(), {});
  Request explicit_request = ValidRequest();
  *explicit_request.mutable_quantization_job()->mutable_spec() = implicit->spec;
  EXPECT_EQ(ValidateCreate(explicit_request, {})->spec_digest, implicit->spec_digest);
  Request other = ValidRequest();
  other.mutable_quantization_job()->mutable_spec()->set_seed(1);
  EXPECT_NE(ValidateCreate(other, {})->spec_digest, implicit->spec_digest);
}

TEST(ValidateCreate, RequestHashCoversThePayloadOnly) {
  Request request = ValidRequest();
  (*request.mutable_quantization_job()->mutable_labels())["a"] = "1";
  (*request.mutable_quantization_job()->mutable_labels())["b"] = "2";
  const std::string hash = ValidateCreate(request, {})->request_hash;
  request.set_request_id("123e4567-e89b-42d3-a456-426614174000");
  EXPECT_EQ(ValidateCreate(request, {})->request_hash, hash);
  (*request.mutable_quantization_job()->mutable_labels())["b"] = "3";
  EXPECT_NE(ValidateCreate(request, {})->request_hash, hash);
}

TEST(ValidateCreate, ChoosesAnId) {
  Request request = ValidRequest();
  request.clear_quantization_job_id();
  const auto first = ValidateCreate(request, {});
  const auto second = ValidateCreate(request, {});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->key.id, second->key.id);
  EXPECT_EQ(first->request_hash, second->request_hash);
}

struct BadCase {
  const char* name;
  std::function<void(Request*)> damage;
  const char* field;   // of the first violation
  const char* wanted;  // part of its description
};

v1::JobSpec* Spec(Request* request) { return request->mutable_quantization_job()->mutable_spec(); }
v1::WeightGrid* Grid(Request* request) {
  return Spec(request)->mutable_method()->mutable_awq()->mutable_grid();
}
v1::TesseraqMethod* Tesseraq(Request* request) {
  v1::TesseraqMethod* tesseraq = Spec(request)->mutable_method()->mutable_tesseraq();
  tesseraq->mutable_grid()->set_bits(4);
  return tesseraq;
}

v1::QuarotMethod* Quarot(Request* request) {
  v1::QuarotMethod* quarot = Spec(request)->mutable_method()->mutable_quarot();
  quarot->mutable_grid()->set_bits(4);
  return quarot;
}

v1::Ptq161Method* Ptq161(Request* request) {
  return Spec(request)->mutable_method()->mutable_ptq161();
}

v1::LoraOptions* Lora(Request* request) {
  v1::Preprocessing* preprocessing = Spec(request)->mutable_preprocessing();
  preprocessing->mutable_source()->set_local_path("/text");
  return preprocessing->mutable_lora();
}

class BadSpec : public testing::TestWithParam<BadCase> {};

TEST_P(BadSpec, NamesTheFieldWantedAndGot) {
  Request request = ValidRequest();
  GetParam().damage(&request);
  const auto submit = ValidateCreate(request, {.max_blob_bytes = 1000});
  ASSERT_FALSE(submit.ok());
  EXPECT_EQ(submit.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(HasReason(submit.status(), Reason::kInvalidSpec)) << submit.status();
  const auto violations = ViolationsOf(submit.status());
  ASSERT_EQ(violations.size(), 1u) << submit.status();
  EXPECT_EQ(violations[0].field(), GetParam().field);
  EXPECT_NE(violations[0].description().find(GetParam().wanted), std::string::npos)
      << violations[0].description();
}

const BadCase kBadCases[] = {
    {"bits", [](Request* r) { Grid(r)->set_bits(5); }, "quantization_job.spec.method.awq.grid.bits",
     "wanted 2, 3, 4, 6 or 8, got 5"},
    {"bits_missing", [](Request* r) { Grid(r)->clear_bits(); },
     "quantization_job.spec.method.awq.grid.bits", "got 0"},
    {"group_size", [](Request* r) { Grid(r)->set_group_size(-2); },
     "quantization_job.spec.method.awq.grid.group_size", "got -2"},
    {"activation_bits",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_awq()->mutable_activations()->set_bits(12);
     },
     "quantization_job.spec.method.awq.activations.bits", "wanted 2 to 8, or 16"},
    {"damping",
     [](Request* r) {
       v1::GptqMethod* gptq = Spec(r)->mutable_method()->mutable_gptq();
       gptq->mutable_grid()->set_bits(3);
       gptq->set_damping(-0.1);
     },
     "quantization_job.spec.method.gptq.damping", "wanted 0 to 1"},
    {"iterations",
     [](Request* r) {
       v1::SignroundMethod* signround = Spec(r)->mutable_method()->mutable_signround();
       signround->mutable_grid()->set_bits(3);
       signround->set_iterations(-1);
     },
     "quantization_job.spec.method.signround.iterations", "wanted 0 to"},
    {"signround_batch_of_the_default_samples",
     [](Request* r) {
       v1::SignroundMethod* signround = Spec(r)->mutable_method()->mutable_signround();
       signround->mutable_grid()->set_bits(3);
       signround->set_batch_size(129);
     },
     "quantization_job.spec.method.signround.batch_size",
     "wanted at most calibration.samples, 128, got 129"},
    {"signround_batch_too_large",
     [](Request* r) {
       v1::SignroundMethod* signround = Spec(r)->mutable_method()->mutable_signround();
       signround->mutable_grid()->set_bits(3);
       signround->set_batch_size(65537);
     },
     "quantization_job.spec.method.signround.batch_size", "0 to 65536"},
    {"omniquant_batch_of_the_samples",
     [](Request* r) {
       v1::OmniquantMethod* omniquant = Spec(r)->mutable_method()->mutable_omniquant();
       omniquant->mutable_grid()->set_bits(3);
       omniquant->set_batch_size(5);
       Spec(r)->mutable_calibration()->set_samples(4);
     },
     "quantization_job.spec.method.omniquant.batch_size",
     "wanted at most calibration.samples, 4, got 5"},
    {"grid_points",
     [](Request* r) { Spec(r)->mutable_method()->mutable_awq()->set_scale_grid_points(-1); },
     "quantization_job.spec.method.awq.scale_grid_points", "wanted 0 to 1000"},
    {"no_method", [](Request* r) { Spec(r)->clear_method(); }, "quantization_job.spec.method",
     "one of the methods"},
    {"no_model", [](Request* r) { Spec(r)->clear_model(); }, "quantization_job.spec.model",
     "one of local_path, uri, blobs"},
    {"no_files", [](Request* r) { Spec(r)->mutable_model()->mutable_blobs()->clear_files(); },
     "quantization_job.spec.model.blobs.files", "wanted 1 to 10000"},
    {"path_up",
     [](Request* r) {
       Spec(r)->mutable_model()->mutable_blobs()->mutable_files(0)->set_path("../x");
     },
     "quantization_job.spec.model.blobs.files[0].path", "got '../x'"},
    {"path_backslash",
     [](Request* r) {
       Spec(r)->mutable_model()->mutable_blobs()->mutable_files(0)->set_path("a\\b");
     },
     "quantization_job.spec.model.blobs.files[0].path", "relative path"},
    {"path_absolute",
     [](Request* r) {
       Spec(r)->mutable_model()->mutable_blobs()->mutable_files(0)->set_path("/etc/x");
     },
     "quantization_job.spec.model.blobs.files[0].path", "relative path"},
    {"path_twice",
     [](Request* r) {
       *Spec(r)->mutable_model()->mutable_blobs()->add_files() = Blob("config.json");
     },
     "quantization_job.spec.model.blobs.files[1].path", "each path once"},
    {"path_in_a_file",
     [](Request* r) {
       *Spec(r)->mutable_model()->mutable_blobs()->add_files() = Blob("config.json/a/b");
     },
     "quantization_job.spec.model.blobs.files", "got 'config.json' and 'config.json/a/b'"},
    {"path_of_a_long_name",
     [](Request* r) {
       Spec(r)->mutable_model()->mutable_blobs()->mutable_files(0)->set_path("a/" +
                                                                             std::string(256, 'x'));
     },
     "quantization_job.spec.model.blobs.files[0].path", "names of at most 255 bytes"},
    {"sha256",
     [](Request* r) {
       Spec(r)->mutable_model()->mutable_blobs()->mutable_files(0)->set_sha256("abc");
     },
     "quantization_job.spec.model.blobs.files[0].sha256", "64 lower-case hex digits"},
    {"blob_size",
     [](Request* r) {
       Spec(r)->mutable_model()->mutable_blobs()->mutable_files(0)->set_size_bytes(1001);
     },
     "quantization_job.spec.model.blobs.files[0].size_bytes", "wanted 0 to 1000, got 1001"},
    {"relative_local", [](Request* r) { Spec(r)->mutable_model()->set_local_path("models/x"); },
     "quantization_job.spec.model.local_path", "absolute path"},
    {"scheme", [](Request* r) { Spec(r)->mutable_model()->set_uri("http://x/y"); },
     "quantization_job.spec.model.uri", "file:///, s3://"},
    {"escaped_file_uri",
     [](Request* r) { Spec(r)->mutable_model()->set_uri("file:///a/%2e%2e/b"); },
     "quantization_job.spec.model.uri", "without %-escapes"},
    {"no_calibration", [](Request* r) { Spec(r)->clear_calibration(); },
     "quantization_job.spec.calibration", "awq needs one"},
    {"no_calibration_of_quarots_gptq",
     [](Request* r) {
       Spec(r)->clear_calibration();
       Spec(r)->mutable_method()->mutable_quarot()->mutable_grid()->set_bits(4);
       Spec(r)->mutable_method()->mutable_quarot()->set_gptq(true);
     },
     "quantization_job.spec.calibration", "quarot needs one"},
    {"samples", [](Request* r) { Spec(r)->mutable_calibration()->set_samples(-1); },
     "quantization_job.spec.calibration.samples", "got -1"},
    {"length", [](Request* r) { Spec(r)->mutable_calibration()->set_sequence_length(1 << 20); },
     "quantization_job.spec.calibration.sequence_length", "got 1048576"},
    {"length_negative", [](Request* r) { Spec(r)->mutable_calibration()->set_sequence_length(-1); },
     "quantization_job.spec.calibration.sequence_length", "got -1"},
    {"one_token_calibration",
     [](Request* r) { Spec(r)->mutable_calibration()->set_sequence_length(1); },
     "quantization_job.spec.calibration.sequence_length",
     "wanted 0 (the default) or at least 2, at most 131072, got 1"},
    {"one_token_evaluation",
     [](Request* r) {
       Spec(r)->mutable_evaluation()->mutable_source()->set_local_path("/text");
       Spec(r)->mutable_evaluation()->set_sequence_length(1);
     },
     "quantization_job.spec.evaluation.sequence_length", "at least 2"},
    {"one_token_preprocessing",
     [](Request* r) {
       Spec(r)->mutable_preprocessing()->mutable_source()->set_local_path("/text");
       Spec(r)->mutable_preprocessing()->set_sequence_length(1);
     },
     "quantization_job.spec.preprocessing.sequence_length", "at least 2"},
    {"format",
     [](Request* r) { Spec(r)->mutable_calibration()->set_format(static_cast<v1::TextFormat>(9)); },
     "quantization_job.spec.calibration.format", "a known TextFormat"},
    {"learning_rate", [](Request* r) { Tesseraq(r)->set_learning_rate(-1); },
     "quantization_job.spec.method.tesseraq.learning_rate", "got -1"},
    {"learning_rate_zero", [](Request* r) { Tesseraq(r)->set_learning_rate(0); },
     "quantization_job.spec.method.tesseraq.learning_rate",
     "a number above 0, or nothing for the default, got 0"},
    {"signround_rate_zero",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_signround()->mutable_grid()->set_bits(4);
       Spec(r)->mutable_method()->mutable_signround()->set_learning_rate(0);
     },
     "quantization_job.spec.method.signround.learning_rate", "or nothing for the default, got 0"},
    {"signround_rate_too_large",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_signround()->mutable_grid()->set_bits(4);
       Spec(r)->mutable_method()->mutable_signround()->set_learning_rate(1.5);
     },
     "quantization_job.spec.method.signround.learning_rate", "above 0 and at most 1, got 1.5"},
    {"salient_ratio_zero_of_a_first_pass",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_restore()->mutable_first_pass()->set_salient_ratio(0);
       Spec(r)->mutable_preprocessing()->mutable_source()->set_local_path("/text");
     },
     "quantization_job.spec.method.restore.first_pass.salient_ratio", "got 0"},
    {"learning_rate_nan",
     [](Request* r) { Tesseraq(r)->set_learning_rate(std::numeric_limits<double>::quiet_NaN()); },
     "quantization_job.spec.method.tesseraq.learning_rate", "got nan"},
    {"weight_decay", [](Request* r) { Tesseraq(r)->set_rounding_weight_decay(0.1); },
     "quantization_job.spec.method.tesseraq.rounding_weight_decay", "NaN"},
    {"schedule_rises",
     [](Request* r) {
       Tesseraq(r)->add_schedule(0.5);
       Tesseraq(r)->add_schedule(0.6);
     },
     "quantization_job.spec.method.tesseraq.schedule[1]", "fall"},
    {"schedule_and_stages",
     [](Request* r) {
       Tesseraq(r)->add_schedule(0.5);
       Tesseraq(r)->set_stages(2);
     },
     "quantization_job.spec.method.tesseraq.stages", "nothing beside schedule"},
    {"schedule_of_1001_stages",
     [](Request* r) {
       for (int i = 1; i <= 1001; ++i) Tesseraq(r)->add_schedule(1 - i / 2000.0);
     },
     "quantization_job.spec.method.tesseraq.schedule", "at most 1000 stages, got 1001"},
    {"stages", [](Request* r) { Tesseraq(r)->set_stages(-1); },
     "quantization_job.spec.method.tesseraq.stages", "got -1"},
    {"steps", [](Request* r) { Tesseraq(r)->set_steps_per_stage(-1); },
     "quantization_job.spec.method.tesseraq.steps_per_stage", "got -1"},
    {"batch", [](Request* r) { Tesseraq(r)->set_batch_size(129); },
     "quantization_job.spec.method.tesseraq.batch_size", "at most calibration.samples, 128"},
    {"reach", [](Request* r) { Tesseraq(r)->set_rounding_reach(3); },
     "quantization_job.spec.method.tesseraq.rounding_reach", "0 to 2, got 3"},
    {"reach_negative", [](Request* r) { Tesseraq(r)->set_rounding_reach(-1); },
     "quantization_job.spec.method.tesseraq.rounding_reach", "got -1"},
    {"held_out_negative", [](Request* r) { Tesseraq(r)->set_held_out_samples(-1); },
     "quantization_job.spec.method.tesseraq.held_out_samples", "got -1"},
    {"held_out_of_the_default_samples", [](Request* r) { Tesseraq(r)->set_held_out_samples(125); },
     "quantization_job.spec.method.tesseraq.held_out_samples", "at most 124, so that a batch of 4"},
    {"held_out_beside_a_batch",
     [](Request* r) {
       Tesseraq(r)->set_batch_size(8);
       Tesseraq(r)->set_held_out_samples(9);
       Spec(r)->mutable_calibration()->set_samples(16);
     },
     "quantization_job.spec.method.tesseraq.held_out_samples", "at most 8"},
    {"mixing", [](Request* r) { Tesseraq(r)->set_input_mixing(2); },
     "quantization_job.spec.method.tesseraq.input_mixing", "got 2"},
    {"token_energy_limit", [](Request* r) { Tesseraq(r)->set_token_energy_limit(-2); },
     "quantization_job.spec.method.tesseraq.token_energy_limit", "got -2"},
    {"token_energy_limit_of_signround",
     [](Request* r) {
       v1::SignroundMethod* signround = Spec(r)->mutable_method()->mutable_signround();
       signround->mutable_grid()->set_bits(3);
       signround->set_token_energy_limit(-1);
     },
     "quantization_job.spec.method.signround.token_energy_limit", "got -1"},
    {"token_energy_limit_of_ptq161",
     [](Request* r) { Spec(r)->mutable_method()->mutable_ptq161()->set_token_energy_limit(-2); },
     "quantization_job.spec.method.ptq161.token_energy_limit", "got -2"},
    {"salient_ratio",
     [](Request* r) { Spec(r)->mutable_method()->mutable_ptq161()->set_salient_ratio(0.6); },
     "quantization_job.spec.method.ptq161.salient_ratio", "0.5"},
    {"salient_ratio_zero",
     [](Request* r) { Spec(r)->mutable_method()->mutable_ptq161()->set_salient_ratio(0); },
     "quantization_job.spec.method.ptq161.salient_ratio", "got 0"},
    {"salient_ratio_below_zero",
     [](Request* r) { Spec(r)->mutable_method()->mutable_ptq161()->set_salient_ratio(-0.1); },
     "quantization_job.spec.method.ptq161.salient_ratio", "got -0.1"},
    {"salient_ratio_of_no_number",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_ptq161()->set_salient_ratio(
           std::numeric_limits<double>::quiet_NaN());
     },
     "quantization_job.spec.method.ptq161.salient_ratio", "got nan"},
    {"salient_ratio_of_a_first_pass",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_restore()->mutable_first_pass()->set_salient_ratio(0.6);
       Spec(r)->mutable_preprocessing()->mutable_source()->set_local_path("/text");
     },
     "quantization_job.spec.method.restore.first_pass.salient_ratio", "0.5"},
    {"rounding_rate",
     [](Request* r) {
       Ptq161(r)->set_learn_rounding(true);
       Ptq161(r)->set_rounding_rate(-1);
     },
     "quantization_job.spec.method.ptq161.rounding_rate", "got -1"},
    {"scale_learning_rate", [](Request* r) { Tesseraq(r)->set_scale_learning_rate(-0.1); },
     "quantization_job.spec.method.tesseraq.scale_learning_rate", "got -0.1"},
    {"learning_rate_infinite",
     [](Request* r) { Tesseraq(r)->set_learning_rate(std::numeric_limits<double>::infinity()); },
     "quantization_job.spec.method.tesseraq.learning_rate", "got inf"},
    {"schedule_level",
     [](Request* r) {
       Tesseraq(r)->add_schedule(0.5);
       Tesseraq(r)->add_schedule(0.5);
     },
     "quantization_job.spec.method.tesseraq.schedule[1]", "fall"},
    {"schedule_to_zero",
     [](Request* r) {
       Tesseraq(r)->add_schedule(0.5);
       Tesseraq(r)->add_schedule(0);
     },
     "quantization_job.spec.method.tesseraq.schedule[1]", "above 0"},
    {"schedule_nan",
     [](Request* r) { Tesseraq(r)->add_schedule(std::numeric_limits<double>::quiet_NaN()); },
     "quantization_job.spec.method.tesseraq.schedule[0]", "got nan"},
    {"batch_of_the_samples",
     [](Request* r) {
       Tesseraq(r)->set_batch_size(17);
       Spec(r)->mutable_calibration()->set_samples(16);
     },
     "quantization_job.spec.method.tesseraq.batch_size", "at most calibration.samples, 16, got 17"},
    {"default_batch",
     [](Request* r) {
       Tesseraq(r);
       Spec(r)->mutable_calibration()->set_samples(3);
     },
     "quantization_job.spec.method.tesseraq.batch_size", "at most calibration.samples, 3, got 4"},
    {"batch_of_thousands",
     [](Request* r) {
       Tesseraq(r)->set_batch_size(5000);
       Spec(r)->mutable_calibration()->set_samples(6000);
     },
     "quantization_job.spec.method.tesseraq.batch_size", "0 to 4096"},
    {"scale_decay", [](Request* r) { Tesseraq(r)->set_scale_weight_decay(-2); },
     "quantization_job.spec.method.tesseraq.scale_weight_decay", "-1 (none)"},
    {"scale_decay_of_neither", [](Request* r) { Tesseraq(r)->set_scale_weight_decay(-0.5); },
     "quantization_job.spec.method.tesseraq.scale_weight_decay", "-1 (none)"},
    {"tuning_dense_rate_of_neither",
     [](Request* r) {
       Tesseraq(r)->set_model_tuning_steps(5);
       Tesseraq(r)->set_model_tuning_dense_rate(-1e-3);
     },
     "quantization_job.spec.method.tesseraq.model_tuning_dense_rate", "-1 (none)"},
    {"tuning_dense_rate",
     [](Request* r) {
       Tesseraq(r)->set_model_tuning_steps(5);
       Tesseraq(r)->set_model_tuning_dense_rate(-2);
     },
     "quantization_job.spec.method.tesseraq.model_tuning_dense_rate", "-1 (none)"},
    {"budget_unknown",
     [](Request* r) { Tesseraq(r)->set_budget(static_cast<v1::TesseraqMethod::Budget>(9)); },
     "quantization_job.spec.method.tesseraq.budget", "a known Budget, got 9"},
    {"init_unknown",
     [](Request* r) { Tesseraq(r)->set_init(static_cast<v1::TesseraqMethod::Init>(9)); },
     "quantization_job.spec.method.tesseraq.init", "a known Init, got 9"},
    {"statistic_unknown",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_restore()->mutable_first_pass()->set_statistic(
           static_cast<v1::Ptq161Method::Statistic>(9));
       Spec(r)->mutable_preprocessing()->mutable_source()->set_local_path("/text");
     },
     "quantization_job.spec.method.restore.first_pass.statistic", "a known Statistic, got 9"},
    {"billm_metric",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_billm()->set_metric(
           static_cast<v1::BillmMethod::Metric>(9));
     },
     "quantization_job.spec.method.billm.metric", "a known Metric, got 9"},
    {"billm_domain",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_billm()->set_domain(
           static_cast<v1::BillmMethod::Domain>(9));
     },
     "quantization_job.spec.method.billm.domain", "a known Domain, got 9"},
    {"pbllm_metric",
     [](Request* r) {
       Spec(r)->mutable_method()->mutable_pbllm()->set_metric(
           static_cast<v1::PbllmMethod::Metric>(9));
     },
     "quantization_job.spec.method.pbllm.metric", "a known Metric, got 9"},
    {"pbllm_ratio",
     [](Request* r) { Spec(r)->mutable_method()->mutable_pbllm()->set_salient_ratio(2); },
     "quantization_job.spec.method.pbllm.salient_ratio", "got 2"},
    {"pbllm_everything",
     [](Request* r) { Spec(r)->mutable_method()->mutable_pbllm()->set_salient_ratio(1); },
     "quantization_job.spec.method.pbllm.salient_ratio", "below 1, got 1"},
    {"rounding_batch",
     [](Request* r) {
       Ptq161(r)->set_learn_rounding(true);
       Ptq161(r)->set_rounding_batch(-1);
     },
     "quantization_job.spec.method.ptq161.rounding_batch", "got -1"},
    {"rounding_batch_of_the_samples",
     [](Request* r) {
       Ptq161(r)->set_learn_rounding(true);
       Ptq161(r)->set_rounding_batch(5);
       Spec(r)->mutable_calibration()->set_samples(4);
     },
     "quantization_job.spec.method.ptq161.rounding_batch",
     "wanted at most calibration.samples, 4, got 5"},
    {"salient_multiple_of_one", [](Request* r) { Ptq161(r)->set_salient_multiple(1); },
     "quantization_job.spec.method.ptq161.salient_multiple", "0 or at least 2"},
    {"stop_improvement", [](Request* r) { Ptq161(r)->set_stop_improvement(1); },
     "quantization_job.spec.method.ptq161.stop_improvement", "below 1, got 1"},
    {"stop_improvement_negative", [](Request* r) { Ptq161(r)->set_stop_improvement(-0.1); },
     "quantization_job.spec.method.ptq161.stop_improvement", "got -0.1"},
    {"warmup_of_all_steps",
     [](Request* r) {
       Lora(r)->set_steps(7);
       Lora(r)->set_warmup_steps(7);
     },
     "quantization_job.spec.preprocessing.lora.warmup_steps", "below steps, 7, got 7"},
    {"warmup_of_the_default_steps", [](Request* r) { Lora(r)->set_warmup_steps(10000); },
     "quantization_job.spec.preprocessing.lora.warmup_steps", "below steps, 10000"},
    {"dropout_negative", [](Request* r) { Lora(r)->set_dropout(-0.5); },
     "quantization_job.spec.preprocessing.lora.dropout", "got -0.5"},
    {"restore_without_corpus", [](Request* r) { Spec(r)->mutable_method()->mutable_restore(); },
     "quantization_job.spec.preprocessing", "method restore needs one"},
    {"first_pass_mask_without_corpus", [](Request* r) { Ptq161(r)->set_first_pass_mask(true); },
     "quantization_job.spec.preprocessing", "first_pass_mask needs one"},
    {"evaluation_source", [](Request* r) { Spec(r)->mutable_evaluation(); },
     "quantization_job.spec.evaluation.source", "one of local_path, uri, blob"},
    {"gate_without_evaluation",
     [](Request* r) { Spec(r)->mutable_quality_gate()->set_max_perplexity_ratio(1.1); },
     "quantization_job.spec.evaluation", "the quality gate needs a measurement"},
    {"gate_nan",
     [](Request* r) {
       Spec(r)->mutable_quality_gate()->set_max_perplexity_increase(
           std::numeric_limits<double>::quiet_NaN());
     },
     "quantization_job.spec.quality_gate.max_perplexity_increase", "finite"},
    {"output_unknown", [](Request* r) { Spec(r)->add_outputs(); },
     "quantization_job.spec.outputs[0].format", "one of compressed-tensors, dense, quantry"},
    {"awq_of_two_bits",
     [](Request* r) {
       Grid(r)->set_bits(2);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_AWQ);
     },
     "quantization_job.spec.outputs[0].format", "dense, quantry, gptq, int4-carrier"},
    {"v1_with_zero_points_of_zero",
     [](Request* r) { Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_GPTQ_V1); },
     "quantization_job.spec.outputs[0].format", "zero_point_at_least_one"},
    {"compressed_tensors_of_six_bits",
     [](Request* r) {
       Grid(r)->set_bits(6);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_COMPRESSED_TENSORS);
     },
     "quantization_job.spec.outputs[0].format",
     "a grid of 2, 3, 4 or 8 bits for compressed-tensors (formats that can hold "
     "this: "
     "dense, quantry)"},
    {"gptq_of_six_bits",
     [](Request* r) {
       Grid(r)->set_bits(6);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_GPTQ);
     },
     "quantization_job.spec.outputs[0].format", "2, 3, 4 or 8 bits for gptq "},
    {"gptq_v1_of_six_bits",
     [](Request* r) {
       Grid(r)->set_bits(6);
       Grid(r)->set_symmetric(true);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_GPTQ_V1);
     },
     "quantization_job.spec.outputs[0].format", "2, 3, 4 or 8 bits for gptq-v1"},
    {"online_rotation_in_compressed_tensors",
     [](Request* r) {
       Quarot(r)->mutable_activations()->set_bits(4);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_COMPRESSED_TENSORS);
     },
     "quantization_job.spec.outputs[0].format",
     "no rotation of activations while the model runs for compressed-tensors "
     "(formats "
     "that can hold this: dense, quantry), got 4 bits, asymmetric, activations rotated online"},
    {"online_rotation_asked_for",
     [](Request* r) {
       Quarot(r)->mutable_rotation()->set_online(true);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_AWQ);
     },
     "quantization_job.spec.outputs[0].format", "can hold this: dense, quantry)"},
    {"online_rotation_of_tesseraq",
     [](Request* r) {
       Tesseraq(r)->set_init(v1::TesseraqMethod::INIT_QUAROT);
       Tesseraq(r)->mutable_activations()->set_bits(8);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_GPTQ);
     },
     "quantization_job.spec.outputs[0].format", "activations rotated online"},
    {"carrier_of_four_bits",
     [](Request* r) { Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_INT4_CARRIER); },
     "quantization_job.spec.outputs[0].format", "gptq, awq"},
    {"output_twice",
     [](Request* r) {
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_DENSE);
       Spec(r)->add_outputs()->set_format(v1::OUTPUT_FORMAT_DENSE);
     },
     "quantization_job.spec.outputs[1].format", "each format once"},
    {"device", [](Request* r) { Spec(r)->mutable_resources()->set_device("tpu"); },
     "quantization_job.spec.resources.device", "got 'tpu'"},
    {"device_number", [](Request* r) { Spec(r)->mutable_resources()->set_device("cuda:x"); },
     "quantization_job.spec.resources.device", "cuda:N"},
    {"threads", [](Request* r) { Spec(r)->mutable_resources()->set_threads(-1); },
     "quantization_job.spec.resources.threads", "got -1"},
    {"max_run",
     [](Request* r) { Spec(r)->mutable_stop_limits()->mutable_max_run()->set_seconds(-1); },
     "quantization_job.spec.stop_limits.max_run.seconds", "got -1"},
    {"attempts", [](Request* r) { Spec(r)->mutable_retry_policy()->set_max_attempts(101); },
     "quantization_job.spec.retry_policy.max_attempts", "got 101"},
    {"priority", [](Request* r) { r->mutable_quantization_job()->set_priority(101); },
     "quantization_job.priority", "wanted -100 to 100, got 101"},
    {"label_key",
     [](Request* r) { (*r->mutable_quantization_job()->mutable_labels())["A b"] = "x"; },
     "quantization_job.labels", "got 'A b'"},
    {"label_value",
     [](Request* r) { (*r->mutable_quantization_job()->mutable_labels())["a"] = "x\ny"; },
     "quantization_job.labels[a]", "control characters"},
    {"display_name",
     [](Request* r) { r->mutable_quantization_job()->set_display_name(std::string(257, 'x')); },
     "quantization_job.display_name", "at most 256 bytes"},
    {"request_id", [](Request* r) { r->set_request_id("again"); }, "request_id", "a UUID"},
    {"spec_size",
     [](Request* r) { Spec(r)->mutable_model()->set_uri("s3://" + std::string(300000, 'x')); },
     "quantization_job.spec", "at most 262144 bytes"},
};

INSTANTIATE_TEST_SUITE_P(Table, BadSpec, testing::ValuesIn(kBadCases),
                         [](const auto& test) { return std::string(test.param.name); });

v1::OutputFormat DefaultOutputOf(const Request& request,
                                 std::span<const v1::MethodDescription> methods = {}) {
  const auto submit = ValidateCreate(request, {}, methods);
  EXPECT_TRUE(submit.ok()) << submit.status();
  if (!submit.ok() || submit->spec.outputs_size() != 1) return v1::OUTPUT_FORMAT_UNSPECIFIED;
  return submit->spec.outputs(0).format();
}

TEST(ValidateCreate, TheDefaultOutputHoldsTheGrid) {
  for (const int bits : {2, 3, 4, 6, 8}) {
    Request request = ValidRequest();
    Grid(&request)->set_bits(bits);
    EXPECT_EQ(DefaultOutputOf(request),
              bits == 6 ? v1::OUTPUT_FORMAT_QUANTRY : v1::OUTPUT_FORMAT_COMPRESSED_TENSORS)
        << bits;
  }
}

TEST(ValidateCreate, OptionsThatBelongTogetherAreTaken) {
  const std::function<void(Request*)> cases[] = {
      [](Request* r) { Spec(r)->mutable_method()->mutable_billm()->set_exact_compensation(true); },
      [](Request* r) { Spec(r)->mutable_method()->mutable_pbllm()->set_salient_ratio(0.2); },
      [](Request* r) { Tesseraq(r)->set_recipe("tesseraq-plus"); },
      // Its default of 8 windows a step takes what there is.
      [](Request* r) {
        Spec(r)->mutable_method()->mutable_signround()->mutable_grid()->set_bits(3);
        Spec(r)->mutable_calibration()->set_samples(2);
      },
      [](Request* r) {
        v1::SignroundMethod* signround = Spec(r)->mutable_method()->mutable_signround();
        signround->mutable_grid()->set_bits(3);
        signround->set_batch_size(16);
        Spec(r)->mutable_calibration()->set_samples(16);
      },
      [](Request* r) {
        Tesseraq(r)->set_scale_weight_decay(-1);
        Tesseraq(r)->set_budget(v1::TesseraqMethod::BUDGET_BALANCED);
        Tesseraq(r)->set_batch_size(128);
      },
      [](Request* r) {
        for (int i = 1; i <= 1000; ++i) Tesseraq(r)->add_schedule(1 - i / 2000.0);
      },
      [](Request* r) {
        Tesseraq(r)->set_rounding_reach(2);
        Tesseraq(r)->set_held_out_samples(124);
      },
  };
  for (const auto& change : cases) {
    Request request = ValidRequest();
    change(&request);
    EXPECT_TRUE(ValidateCreate(request, {}).ok()) << ValidateCreate(request, {}).status();
  }
}

TEST(ValidateCreate, AllViolationsAreReportedAtOnce) {
  Request request = ValidRequest();
  Grid(&request)->set_bits(7);
  Spec(&request)->mutable_calibration()->set_samples(-1);
  request.mutable_quantization_job()->set_priority(1000);
  const auto submit = ValidateCreate(request, {});
  EXPECT_EQ(ViolationsOf(submit.status()).size(), 3u);
  EXPECT_NE(submit.status().message().find("and 2 more"), std::string::npos) << submit.status();
}

TEST(ValidateCreate, ManyViolationsStaySmallOnTheWire) {
  Request request = ValidRequest();
  for (int i = 0; i < 2000; ++i) {
    *Spec(&request)->mutable_model()->mutable_blobs()->add_files() = Blob(std::string(60, '\\'));
  }
  const auto submit = ValidateCreate(request, {});
  ASSERT_FALSE(submit.ok());
  EXPECT_LT(ToRpcStatus(submit.status()).ByteSizeLong(), 6000u);
}

// Recipes as an engine could name them.
std::vector<v1::MethodDescription> Offered() {
  v1::MethodDescription tesseraq;
  tesseraq.set_name("tesseraq");
  v1::RecipeDescription* recipe = tesseraq.add_recipes();
  recipe->set_name("four");
  recipe->set_bits(4);
  recipe->set_group_size(128);
  recipe->set_samples(16);
  tesseraq.add_recipes()->set_name("any");
  tesseraq.add_recipes()->set_name("tesseraq-plus");
  v1::RecipeDescription* activations = tesseraq.add_recipes();
  activations->set_name("w4a4");
  activations->set_bits(4);
  activations->set_group_size(-1);
  activations->set_activation_bits(4);
  v1::MethodDescription rtn;
  rtn.set_name("rtn");
  return {rtn, tesseraq};
}

Request RecipeRequest(const std::string& recipe, int bits) {
  Request request = ValidRequest();
  v1::TesseraqMethod* tesseraq = Spec(&request)->mutable_method()->mutable_tesseraq();
  tesseraq->set_recipe(recipe);
  tesseraq->mutable_grid()->set_bits(bits);
  return request;
}

TEST(ValidateCreate, ARecipeContradictedIsRefused) {
  const auto methods = Offered();
  EXPECT_TRUE(ValidateCreate(RecipeRequest("four", 0), {}, methods).ok());
  EXPECT_TRUE(ValidateCreate(RecipeRequest("four", 4), {}, methods).ok());
  EXPECT_TRUE(ValidateCreate(RecipeRequest("any", 3), {}, methods).ok());
  EXPECT_TRUE(ValidateCreate(RecipeRequest("four", 3), {}).ok()) << "the engine's table is unknown";
  const struct {
    const char* recipe;
    int bits;
    const char* field;
    const char* description;
  } cases[] = {
      {"four", 3, "quantization_job.spec.method.tesseraq.grid.bits",
       "wanted 4, which recipe four has, or nothing, got 3"},
      {"best", 0, "quantization_job.spec.method.tesseraq.recipe",
       "wanted one of four, any, tesseraq-plus, w4a4, got 'best'"},
      {"any", 5, "quantization_job.spec.method.tesseraq.grid.bits",
       "wanted 2, 3, 4, 6 or 8, got 5"},
  };
  for (const auto& c : cases) {
    const auto submit = ValidateCreate(RecipeRequest(c.recipe, c.bits), {}, methods);
    EXPECT_TRUE(HasReason(submit.status(), Reason::kInvalidSpec)) << c.description;
    const auto violations = ViolationsOf(submit.status());
    ASSERT_EQ(violations.size(), 1u) << submit.status();
    EXPECT_EQ(violations[0].field(), c.field);
    EXPECT_EQ(violations[0].description(), c.description);
  }
}

TEST(ValidateCreate, OutputsMustHoldTheRecipesGrid) {
  Request request = RecipeRequest("four", 0);
  Spec(&request)->add_outputs()->set_format(v1::OUTPUT_FORMAT_AWQ);
  EXPECT_TRUE(ValidateCreate(request, {}, Offered()).ok());
  EXPECT_TRUE(ValidateCreate(request, {}).ok()) << "the engine's table is unknown";
  Spec(&request)->mutable_outputs(0)->set_format(v1::OUTPUT_FORMAT_INT4_CARRIER);
  const auto submit = ValidateCreate(request, {}, Offered());
  ASSERT_EQ(ViolationsOf(submit.status()).size(), 1u) << submit.status();
  EXPECT_EQ(ViolationsOf(submit.status())[0].field(), "quantization_job.spec.outputs[0].format");
}

TEST(ValidateCreate, ARecipeForAnyGridMeansFourBits) {
  Request request = RecipeRequest("any", 0);
  v1::OutputSpec* output = Spec(&request)->add_outputs();
  output->set_format(v1::OUTPUT_FORMAT_AWQ);
  EXPECT_TRUE(ValidateCreate(request, {}, Offered()).ok());
  output->set_format(v1::OUTPUT_FORMAT_INT4_CARRIER);
  const auto violations = ViolationsOf(ValidateCreate(request, {}, Offered()).status());
  ASSERT_EQ(violations.size(), 1u);
  EXPECT_EQ(violations[0].field(), "quantization_job.spec.outputs[0].format");
  EXPECT_TRUE(ValidateCreate(request, {}).ok()) << "the engine's table is unknown";
}

TEST(ValidateCreate, BatchesFitTheRecipesSamples) {
  const struct {
    const char* name;
    std::function<void(v1::TesseraqMethod*)> change;
    const char* field;  // of the violation; nullptr: taken
  } cases[] = {
      {"batch_of_all", [](v1::TesseraqMethod* m) { m->set_batch_size(16); }, nullptr},
      {"batch_above", [](v1::TesseraqMethod* m) { m->set_batch_size(17); }, "batch_size"},
      {"held_out", [](v1::TesseraqMethod* m) { m->set_held_out_samples(12); }, nullptr},
      {"held_out_above", [](v1::TesseraqMethod* m) { m->set_held_out_samples(13); },
       "held_out_samples"},
  };
  for (const auto& c : cases) {
    Request request = RecipeRequest("four", 0);
    c.change(Spec(&request)->mutable_method()->mutable_tesseraq());
    EXPECT_TRUE(ValidateCreate(request, {}).ok()) << c.name << ": the engine's table is unknown";
    const auto submit = ValidateCreate(request, {}, Offered());
    EXPECT_EQ(submit.ok(), c.field == nullptr) << c.name << ": " << submit.status();
    if (c.field == nullptr) continue;
    const auto violations = ViolationsOf(submit.status());
    ASSERT_EQ(violations.size(), 1u) << c.name;
    EXPECT_EQ(violations[0].field(),
              std::string("quantization_job.spec.method.tesseraq.") + c.field);
    Spec(&request)->mutable_calibration()->set_samples(32);
    EXPECT_TRUE(ValidateCreate(request, {}, Offered()).ok()) << c.name << ": samples given";
  }
}

TEST(ValidateCreate, OutputsMustCarryOnlineRotations) {
  const struct {
    const char* name;
    std::function<void(Request*)> change;
    bool online;
  } cases[] = {
      {"weights", [](Request* r) { Quarot(r); }, false},
      {"sixteen", [](Request* r) { Quarot(r)->mutable_activations()->set_bits(16); }, false},
      {"activations", [](Request* r) { Quarot(r)->mutable_activations()->set_bits(8); }, true},
      {"asked_for", [](Request* r) { Quarot(r)->mutable_rotation()->set_online(true); }, true},
      {"left_out",
       [](Request* r) {
         Quarot(r)->mutable_activations()->set_bits(4);
         Quarot(r)->mutable_rotation()->set_online(false);
       },
       false},
      {"tesseraq_start", [](Request* r) { Tesseraq(r)->set_init(v1::TesseraqMethod::INIT_QUAROT); },
       false},
      {"tesseraq_activations", [](Request* r) { Tesseraq(r)->mutable_activations()->set_bits(4); },
       false},
      {"both",
       [](Request* r) {
         Tesseraq(r)->set_init(v1::TesseraqMethod::INIT_QUAROT);
         Tesseraq(r)->mutable_activations()->set_bits(4);
       },
       true},
      {"plus",
       [](Request* r) {
         Tesseraq(r)->set_recipe("tesseraq-plus");
         Tesseraq(r)->mutable_activations()->set_bits(6);
       },
       true},
      {"plus_with_activations_of_eight_bits",
       [](Request* r) {
         Tesseraq(r)->set_recipe("tesseraq-plus");
         Tesseraq(r)->mutable_activations()->set_bits(8);
       },
       false},
      {"plus_from_elsewhere",
       [](Request* r) {
         Tesseraq(r)->set_recipe("tesseraq-plus");
         Tesseraq(r)->set_init(v1::TesseraqMethod::INIT_SIGNROUND);
         Tesseraq(r)->mutable_activations()->set_bits(4);
       },
       false},
      {"recipe_of_activations",
       [](Request* r) {
         *r = RecipeRequest("w4a4", 0);
         Spec(r)->mutable_method()->mutable_tesseraq()->set_init(v1::TesseraqMethod::INIT_QUAROT);
       },
       true},
      {"recipe_of_weights",
       [](Request* r) {
         *r = RecipeRequest("four", 0);
         Spec(r)->mutable_method()->mutable_tesseraq()->set_init(v1::TesseraqMethod::INIT_QUAROT);
       },
       false},
  };
  for (const auto& c : cases) {
    Request request = ValidRequest();
    c.change(&request);
    EXPECT_EQ(DefaultOutputOf(request, Offered()),
              c.online ? v1::OUTPUT_FORMAT_QUANTRY : v1::OUTPUT_FORMAT_COMPRESSED_TENSORS)
        << c.name;
    v1::OutputSpec* output = Spec(&request)->add_outputs();
    for (const auto format : {v1::OUTPUT_FORMAT_DENSE, v1::OUTPUT_FORMAT_QUANTRY}) {
      output->set_format(format);
      EXPECT_TRUE(ValidateCreate(request, {}, Offered()).ok()) << c.name;
    }
    for (const auto format :
         {v1::OUTPUT_FORMAT_COMPRESSED_TENSORS, v1::OUTPUT_FORMAT_GPTQ, v1::OUTPUT_FORMAT_AWQ}) {
      output->set_format(format);
      EXPECT_EQ(ValidateCreate(request, {}, Offered()).ok(), !c.online)
          << c.name << ": " << v1::OutputFormat_Name(format);
    }
  }
}

std::vector<v1::MethodDescription> Writing(const std::string& method,
                                           std::initializer_list<const char*> formats) {
  v1::MethodDescription row;
  row.set_name(method);
  for (const char* format : formats) row.add_output_formats(format);
  return {row};
}

TEST(ValidateCreate, OutputsMustBeWrittenByTheMethod) {
  const auto methods = Writing("ptq161", {"quantry", "dense"});
  Request request = ValidRequest();
  Ptq161(&request);
  EXPECT_TRUE(ValidateCreate(request, {}, methods).ok());
  v1::OutputSpec* output = Spec(&request)->add_outputs();
  for (const auto format : {v1::OUTPUT_FORMAT_DENSE, v1::OUTPUT_FORMAT_QUANTRY}) {
    output->set_format(format);
    EXPECT_TRUE(ValidateCreate(request, {}, methods).ok()) << v1::OutputFormat_Name(format);
  }
  output->set_format(v1::OUTPUT_FORMAT_GPTQ);
  EXPECT_TRUE(ValidateCreate(request, {}).ok()) << "what the engine writes is unknown";
  EXPECT_TRUE(ValidateCreate(request, {}, Writing("ptq161", {})).ok())
      << "an engine that is silent";
  const auto submit = ValidateCreate(request, {}, methods);
  EXPECT_TRUE(HasReason(submit.status(), Reason::kInvalidSpec)) << submit.status();
  const auto violations = ViolationsOf(submit.status());
  ASSERT_EQ(violations.size(), 1u) << submit.status();
  EXPECT_EQ(violations[0].field(), "quantization_job.spec.outputs[0].format");
  EXPECT_EQ(violations[0].description(),
            "wanted one that method ptq161 can write (dense, quantry), got gptq");
}

TEST(ValidateCreate, TheWordsOfTheEngineAreTheFormats) {
  const std::pair<v1::OutputFormat, const char*> words[] = {
      {v1::OUTPUT_FORMAT_COMPRESSED_TENSORS, "compressed-tensors"},
      {v1::OUTPUT_FORMAT_DENSE, "dense"},
      {v1::OUTPUT_FORMAT_QUANTRY, "quantry"},
      {v1::OUTPUT_FORMAT_GPTQ, "gptq"},
      {v1::OUTPUT_FORMAT_AWQ, "awq"},
      {v1::OUTPUT_FORMAT_GPTQ_V1, "gptq-v1"},
      {v1::OUTPUT_FORMAT_INT4_CARRIER, "int4-carrier"},
  };
  EXPECT_EQ(std::size(words),
            static_cast<size_t>(v1::OutputFormat_descriptor()->value_count() - 1));
  Request request = ValidRequest();
  Ptq161(&request);
  v1::OutputSpec* output = Spec(&request)->add_outputs();
  for (const auto& [format, word] : words) {
    output->set_format(format);
    for (const auto& other : words) {
      const auto submit = ValidateCreate(request, {}, Writing("ptq161", {other.second}));
      EXPECT_EQ(submit.ok(), format == other.first) << word << ", written: " << other.second;
    }
  }
}

// Nobody is sent from one refusal to another.
TEST(ValidateCreate, AGridIsSentToFormatsThatTheMethodWrites) {
  Request request = ValidRequest();
  Grid(&request)->set_bits(6);
  Spec(&request)->add_outputs()->set_format(v1::OUTPUT_FORMAT_GPTQ);
  const auto submit = ValidateCreate(request, {}, Writing("awq", {"gptq", "awq", "dense"}));
  EXPECT_NE(submit.status().message().find("(formats that can hold this: dense)"),
            std::string::npos)
      << submit.status();
  Spec(&request)->mutable_outputs(0)->set_format(v1::OUTPUT_FORMAT_QUANTRY);
  EXPECT_NE(ValidateCreate(request, {}, Writing("awq", {"gptq", "awq", "dense"}))
                .status()
                .message()
                .find("one that method awq can write (dense), got quantry"),
            std::string::npos);
}

TEST(ValidateCreate, NamesAreChecked) {
  for (const char* parent : {"", "acme", "tenants/", "tenants/A", "tenants/a/b", "tenants/../x"}) {
    Request request = ValidRequest();
    request.set_parent(parent);
    EXPECT_TRUE(HasReason(ValidateCreate(request, {}).status(), Reason::kInvalidName)) << parent;
  }
  for (const char* id : {"abc", "Job-1", "1job", "a_b_c", "a/bc"}) {
    Request request = ValidRequest();
    request.set_quantization_job_id(id);
    EXPECT_TRUE(HasReason(ValidateCreate(request, {}).status(), Reason::kInvalidName)) << id;
  }
}

TEST(ValidateUpdate, TakesThreeFields) {
  v1::UpdateQuantizationJobRequest request;
  request.mutable_quantization_job()->set_name("tenants/acme/quantizationJobs/my-job");
  request.mutable_quantization_job()->set_priority(7);
  (*request.mutable_quantization_job()->mutable_labels())["a"] = "b";
  request.mutable_update_mask()->add_paths("priority");
  auto update = ValidateUpdate(request);
  ASSERT_TRUE(update.ok()) << update.status();
  EXPECT_EQ(update->priority, 7);
  EXPECT_FALSE(update->labels.has_value());
  request.mutable_update_mask()->add_paths("expire_time");
  update = ValidateUpdate(request);
  ASSERT_TRUE(update->expire_time.has_value());
  EXPECT_FALSE(update->expire_time->has_value());  // cleared
  request.mutable_update_mask()->add_paths("spec");
  EXPECT_EQ(ViolationsOf(ValidateUpdate(request).status())[0].field(), "update_mask");
  request.clear_update_mask();
  EXPECT_FALSE(ValidateUpdate(request).ok());
}

TEST(Violations, TextsAreCutBetweenCharacters) {
  for (int shift = 0; shift < 2; ++shift) {
    std::string text(static_cast<size_t>(shift), 'x');
    for (int i = 0; i < 500; ++i) text += "\u044f";
    Violations violations;
    violations.Wanted("field", "less", text);
    violations.Add("other", text);
    const std::string bytes =
        ToRpcStatus(violations.ToStatus(Reason::kInvalidSpec)).SerializeAsString();
    google::rpc::Status parsed;
    ASSERT_TRUE(parsed.ParseFromString(bytes)) << shift;
    google::rpc::BadRequest bad;
    for (const auto& detail : parsed.details()) {
      if (!detail.Is<google::rpc::BadRequest>()) continue;
      EXPECT_TRUE(detail.UnpackTo(&bad)) << shift;
    }
    EXPECT_EQ(bad.field_violations_size(), 2) << shift;
  }
}

TEST(PageSize, DefaultsAndBounds) {
  EXPECT_EQ(*PageSize(0), 50);
  EXPECT_EQ(*PageSize(0, kMaxPageSize), 1000);
  EXPECT_EQ(*PageSize(7), 7);
  EXPECT_EQ(*PageSize(5000), 1000);
  EXPECT_FALSE(PageSize(-1).ok());
}

}  // namespace
}  // namespace quantry::server
