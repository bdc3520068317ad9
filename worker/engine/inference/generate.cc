#include "worker/engine/inference/generate.h"

#include "worker/engine/base/error.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {

GenerationReport GenerateGreedily(Decoder& decoder, const std::vector<int32_t>& prompt,
                                  int64_t max_tokens, const std::set<int32_t>& ends,
                                  const std::function<void(int32_t id)>& token,
                                  const std::function<double()>& seconds) {
  GenerationReport report;
  report.prompt_tokens = static_cast<int64_t>(prompt.size());
  const double start = seconds();
  at::Tensor logits = decoder.Append(prompt);
  // Waits for a GPU, too.
  bool finite = logits.isfinite().all().item<bool>();
  report.prompt_seconds = seconds() - start;
  while (report.new_tokens < max_tokens) {
    if (!finite) {
      throw UserError("NON_FINITE_WEIGHTS",
                      StrCat("token ", report.new_tokens + 1,
                             ": the model's logits are not finite; see what `quantry-engine eval` "
                             "says of it"));
    }
    const auto next = static_cast<int32_t>(logits.argmax().item<int64_t>());
    report.stopped = ends.count(next) != 0;
    if (report.stopped) break;
    token(next);
    ++report.new_tokens;
    if (report.new_tokens == max_tokens) break;
    logits = decoder.Append({next});
    finite = logits.isfinite().all().item<bool>();
  }
  report.generation_seconds = seconds() - start - report.prompt_seconds;
  return report;
}

}  // namespace quantry::engine
