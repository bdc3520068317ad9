#include "worker/engine/calibration/dataset.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/json.h"
#include "worker/engine/base/random.h"
#include "worker/engine/base/strings.h"

namespace quantry::engine {
namespace {

using nlohmann::json;

// The whole file is tokenized as one string, so it must fit memory.
constexpr uint64_t kMaxTextBytes = 1ull << 30;

EngineError Invalid(const TextSource& source, const std::string& problem) {
  return UserError(source.reason, StrCat(source.what, " file ", source.path, ": ", problem),
                   {{"path", source.path}, {"problem", problem}});
}

void AppendIds(const json& value, int64_t vocab_size, const TextSource& source,
               std::vector<int32_t>* tokens) {
  for (const json& item : value) {
    if (item.is_array()) {
      AppendIds(item, vocab_size, source, tokens);
      continue;
    }
    const bool fits =
        item.is_number_unsigned() && item.get<uint64_t>() < static_cast<uint64_t>(vocab_size);
    if (!fits) {
      throw Invalid(source,
                    StrCat("entry ", tokens->size(), " is ", Printable(item.dump(), 40),
                           ", token ids of this model are integers from 0 to ", vocab_size - 1));
    }
    tokens->push_back(item.get<int32_t>());
  }
}

// One JSON array (of ids, or of arrays of ids), or one such array a line.
std::vector<int32_t> ParseTokenIds(const std::string& content, int64_t vocab_size,
                                   const TextSource& source) {
  std::vector<int32_t> tokens;
  const std::string what = StrCat(source.what, " file ", source.path);
  constexpr int kDepth = 2;
  if (json::accept(content)) {
    const json whole = ParseJson(content, what, source.reason, kDepth);
    if (!whole.is_array()) throw Invalid(source, "a JSON array of token ids is wanted");
    AppendIds(whole, vocab_size, source, &tokens);
    return tokens;
  }
  std::string_view rest = content;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const json ids = ParseJson(line, StrCat(what, " line ", number), source.reason, kDepth);
    if (!ids.is_array()) {
      throw Invalid(source, StrCat("line ", number, " is not a JSON array of token ids"));
    }
    AppendIds(ids, vocab_size, source, &tokens);
  }
  return tokens;
}

// Throws unless `tokens`, of a text that has what `has` says, make the windows.
// Random ones overlap: a text holds any number of them, or none.
void CheckHolds(int64_t tokens, const std::string& has, const WindowSpec& spec,
                const TextSource& source) {
  const int64_t whole = tokens / spec.length;
  const int64_t wanted = std::max<int64_t>(spec.windows, 1);
  if (whole >= (spec.sampling == Sampling::kRandom ? 1 : wanted)) return;
  throw UserError(
      source.reason,
      StrCat(source.what, " ", has, " = ", whole, " windows of ", spec.length, ", ", wanted,
             " are asked for: give more text, or ask for fewer or shorter windows"),
      {{"tokens", std::to_string(tokens)},
       {"windows", std::to_string(whole)},
       {"windows_wanted", std::to_string(wanted)}});
}

std::vector<int64_t> RandomStarts(int64_t tokens, const WindowSpec& spec) {
  Random random(spec.seed);
  std::vector<int64_t> starts;
  const auto choices = static_cast<uint64_t>(tokens - spec.length + 1);
  for (int64_t i = 0; i < spec.windows; ++i) {
    starts.push_back(static_cast<int64_t>(random.Below(choices)));
  }
  return starts;
}

}  // namespace

std::vector<int32_t> ReadTokens(const TextSource& source, const Tokenizer* tokenizer,
                                int64_t vocab_size) {
  const std::string content = ReadFile(source.path, kMaxTextBytes, source.reason);
  if (content.find_first_not_of(" \t\r\n") == std::string::npos) {
    throw Invalid(source, StrCat("it is empty (", content.size(), " bytes, no text)"));
  }
  if (source.format == TextFormat::kTokenIds) return ParseTokenIds(content, vocab_size, source);
  if (const int64_t offset = FindInvalidUtf8(content); offset >= 0) {
    throw Invalid(source, StrCat("it is not UTF-8 text: byte ", offset,
                                 " starts no valid character. Convert it, for example with iconv "
                                 "-t UTF-8"));
  }
  if (tokenizer == nullptr) {
    throw UserError("INVALID_TOKENIZER",
                    StrCat("the checkpoint has no tokenizer.json, which the ", source.what,
                           " text needs; give token ids instead, or add the file"));
  }
  std::vector<int32_t> ids = tokenizer->Encode(content);
  tokenizer->CheckIds(ids, vocab_size);
  return ids;
}

void CheckTextSize(const TextSource& source, const WindowSpec& spec) {
  std::error_code unknown;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(source.path, unknown));
  if (unknown || spec.length < 1) return;
  CheckReadable(source.path, kMaxTextBytes, source.reason);
  const int64_t most = source.format == TextFormat::kText ? size + 1 : size / 2 + 1;
  CheckHolds(most, StrCat("text has ", size, " bytes, at most ", most, " tokens"), spec, source);
}

at::Tensor CutWindows(const std::vector<int32_t>& tokens, const WindowSpec& spec,
                      const TextSource& source) {
  const auto count = static_cast<int64_t>(tokens.size());
  const bool random = spec.sampling == Sampling::kRandom;
  if (spec.length < 2 || spec.windows < 0 || (random && spec.windows == 0)) {
    throw UserError("INVALID_SPEC",
                    StrCat(source.what, ": ", spec.windows, " windows of ", spec.length,
                           " tokens are asked for; at least 1 of at least 2 are wanted"));
  }
  CheckHolds(count, StrCat("file ", source.path, " has ", count, " tokens"), spec, source);
  const int64_t wanted = spec.windows > 0 ? spec.windows : count / spec.length;
  const std::vector<int64_t> starts = random ? RandomStarts(count, spec) : std::vector<int64_t>();
  at::Tensor windows = at::empty({wanted, spec.length}, at::kLong);
  auto* out = windows.data_ptr<int64_t>();
  for (int64_t i = 0; i < wanted; ++i) {
    const int64_t start = random ? starts[i] : i * spec.length;
    for (int64_t k = 0; k < spec.length; ++k) *out++ = tokens[start + k];
  }
  return windows;
}

}  // namespace quantry::engine
