#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "worker/engine/inference/decoder.h"

namespace quantry::engine {

// What a generation took.
struct GenerationReport {
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double prompt_seconds = 0;      // until the first new token was known
  double generation_seconds = 0;  // for the others
  bool stopped = false;           // by an end token, not by the limit
};

// Greedy: takes the likeliest token (of equals the lowest id) until one of
// `ends` comes, which is not passed on, or `max_tokens` are there. `prompt` has
// at least one token. `seconds` is a steady clock.
GenerationReport GenerateGreedily(Decoder& decoder, const std::vector<int32_t>& prompt,
                                  int64_t max_tokens, const std::set<int32_t>& ends,
                                  const std::function<void(int32_t id)>& token,
                                  const std::function<double()>& seconds);

// generate --model DIR --prompt TEXT [--max-tokens 128] [--threads N]
// Text to stdout as it comes, tokens a second to stderr. DIR is a dense
// checkpoint or a quantry container. Returns the exit status.
int RunGenerate(int argc, char** argv);

}  // namespace quantry::engine
