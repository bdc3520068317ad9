#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "worker/engine/tokenizer/tokenizer.h"

namespace quantry::engine {

enum class TextFormat {
  kText,      // UTF-8, the whole file one string
  kTokenIds,  // a JSON array of ids (or of arrays), or JSON lines of them
};

enum class Sampling {
  kContiguous,  // windows 0, 1, 2, ... one after the other
  kRandom,      // windows at random starts, from the seed
};

struct WindowSpec {
  int64_t windows = 0;  // 0 = all whole contiguous ones; not with kRandom
  int64_t length = 0;   // tokens a window, at least 2
  Sampling sampling = Sampling::kContiguous;
  uint64_t seed = 0;
};

// Token ids of a file, each below vocab_size. `tokenizer` may be null for
// kTokenIds. `what` ("calibration", "evaluation") and `reason`
// ("INVALID_CALIBRATION", "INVALID_EVALUATION") go into errors. Throws
// UserError: file absent or empty, bytes which are not UTF-8 (with their
// offset), ids out of range, a tokenizer that does not fit.
struct TextSource {
  std::string path;
  TextFormat format = TextFormat::kText;
  std::string what = "calibration";
  std::string reason = "INVALID_CALIBRATION";
};
std::vector<int32_t> ReadTokens(const TextSource& source, const Tokenizer* tokenizer,
                                int64_t vocab_size);

// Throws like CutWindows when a file of this size cannot have enough tokens: one
// takes a byte of text or more, an id and what parts it from the next two. How
// many there are is known once the file is read; one that is not there passes.
void CheckTextSize(const TextSource& source, const WindowSpec& spec);

// int64 [windows, length]. Throws UserError with source.reason when there are
// fewer windows than asked for, saying how many there are.
at::Tensor CutWindows(const std::vector<int32_t>& tokens, const WindowSpec& spec,
                      const TextSource& source);

// Offset of the first byte which is not UTF-8; -1 when all is well.
int64_t FindInvalidUtf8(std::string_view text);

}  // namespace quantry::engine
