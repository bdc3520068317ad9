#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "quantry/v1/job.pb.h"

// From flags to the job spec, without a server or a file system.
namespace quantry::cli {

// The flags of submit and quote that decide the result. An empty string or
// optional is a flag the user did not give.
struct SpecFlags {
  std::string method;
  std::optional<int> bits;
  std::string group_size;
  std::optional<bool> symmetric;
  std::optional<bool> zero_point_at_least_one;
  std::optional<int> activation_bits;
  std::map<std::string, std::string> method_fields;  // see method_flags.h
  std::string method_config;                         // contents of the --method-config file

  std::string calibration_format;    // "text", "tokens"
  std::string calibration_sampling;  // "contiguous", "random"
  int calibration_samples = 0;
  int calibration_length = 0;
  bool calibrate = false;  // --calibration was given

  std::string evaluation_format;
  int evaluation_length = 0;
  int evaluation_windows = 0;
  bool evaluate = false;  // --evaluation was given

  std::string preprocessing;  // "none", "lora"
  std::string preprocessing_format;
  int preprocessing_length = 0;
  v1::LoraOptions lora;               // the --preprocessing-... flags of the adapters
  bool preprocessing_corpus = false;  // --preprocessing-corpus was given

  std::vector<std::string> formats;
  double max_perplexity_ratio = 0;
  double max_perplexity_increase = 0;

  std::string device;
  int threads = 0;
  int gpus = 0;
  double gpu_memory_gib = 0;
  double max_run_s = 0;
  double max_pending_s = 0;
  double max_no_progress_s = 0;
  int64_t seed = 0;
};

// Everything but the sources, which the caller sets after an upload.
// INVALID_ARGUMENT names the flag.
absl::StatusOr<v1::JobSpec> BuildSpec(const SpecFlags& flags);

// The method alone: the file's JSON, then the flags over it. A method is known
// when proto/quantry/v1/method.proto has it; nothing here names one.
absl::StatusOr<v1::Method> BuildMethod(const SpecFlags& flags);

// "awq"; "" when none is set.
std::string MethodName(const v1::Method& method);

// Bits, group size and symmetry of the method's grid; null when it has none.
const v1::WeightGrid* GridOf(const v1::Method& method);

// Bits of quantized activations; 16 when they are left alone.
int ActivationBitsOf(const v1::Method& method);

// Words for formats as flags, the server and the JSON use them:
// "compressed-tensors".
std::string FormatName(v1::OutputFormat format);
std::vector<std::string> MethodNames();
std::vector<std::string> FormatNames();

}  // namespace quantry::cli
