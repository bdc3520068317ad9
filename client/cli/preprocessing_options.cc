#include "client/cli/preprocessing_options.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <span>

#include "client/cli/options.h"

namespace quantry::cli {
namespace {

constexpr char kGroup[] = "Preprocessing";

// What turns dropout off: 0 is the engine's default.
constexpr double kNoDropout = -1;

template <typename Number>
struct LoraFlag {
  const char* flag;
  void (v1::LoraOptions::*set)(Number);
  const char* help;
};

constexpr LoraFlag<int32_t> kIntFlags[] = {
    {"--preprocessing-steps", &v1::LoraOptions::set_steps, "Updates. Default: 10000"},
    {"--preprocessing-accumulation", &v1::LoraOptions::set_accumulation,
     "Windows of each update. Default: 2"},
    {"--preprocessing-rank", &v1::LoraOptions::set_rank, "Rank of the adapters. Default: 64"},
    {"--preprocessing-warmup-steps", &v1::LoraOptions::set_warmup_steps,
     "Updates the learning rate rises over, before it falls along a cosine. Default: a tenth"},
};

constexpr LoraFlag<double> kNumberFlags[] = {
    {"--preprocessing-alpha", &v1::LoraOptions::set_alpha,
     "The adapters count alpha / rank. Default: 16"},
    {"--preprocessing-learning-rate", &v1::LoraOptions::set_learning_rate,
     "Highest learning rate. Default: 1e-4"},
    {"--preprocessing-clip-norm", &v1::LoraOptions::set_clip_norm,
     "Largest norm of an update's gradients. Default: 1"},
};

template <typename Number>
void AddNumbers(CLI::App& command, v1::LoraOptions& lora, std::span<const LoraFlag<Number>> flags,
                const char* type) {
  for (const LoraFlag<Number>& flag : flags) {
    command
        .add_option_function<Number>(
            flag.flag, [&lora, set = flag.set](Number value) { (lora.*set)(value); }, flag.help)
        ->check(Positive())
        ->type_name(type)
        ->group(kGroup);
  }
}

void AddLoraFlags(CLI::App& command, v1::LoraOptions& lora) {
  AddNumbers<int32_t>(command, lora, kIntFlags, "N");
  AddNumbers<double>(command, lora, kNumberFlags, "X");
  command
      .add_option_function<double>(
          "--preprocessing-dropout",
          [&lora](double share) { lora.set_dropout(share == 0 ? kNoDropout : share); },
          "Share of the adapters' inputs left out at random, at most 0.99; 0 = none. Default: 0.1")
      ->check(CLI::Range(0.0, 0.99))
      ->type_name("X")
      ->group(kGroup);
  command
      .add_flag_function(
          "--preprocessing-attention-output",
          [&lora](int64_t count) { lora.set_attention_output(count > 0); },
          "Adapters on the attention's output projection too. Default: false")
      ->group(kGroup);
}

}  // namespace

void AddPreprocessingOptions(CLI::App& command, SubmitOptions& o) {
  Choices(command.add_option("--preprocessing", o.spec.preprocessing,
                             "lora: quantize once, train adapters on the quantized model by "
                             "next-token loss, merge them, and quantize what comes out. "
                             "Default: none"),
          {"none", "lora"})
      ->group(kGroup);
  command
      .add_option("--preprocessing-corpus", o.preprocessing_corpus,
                  "Text to train the adapters on: a file here, or a URI")
      ->type_name("FILE")
      ->group(kGroup);
  Choices(command.add_option("--preprocessing-format", o.spec.preprocessing_format,
                             "UTF-8 text, or JSON token ids. Default: text"),
          {"text", "tokens"})
      ->group(kGroup);
  command
      .add_option("--preprocessing-length", o.spec.preprocessing_length,
                  "Tokens a window. Default: the calibration's")
      ->check(Positive())
      ->type_name("N")
      ->group(kGroup);
  AddLoraFlags(command, o.spec.lora);
}

}  // namespace quantry::cli
