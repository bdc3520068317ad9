#include "worker/engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <limits>

#include "worker/engine/base/error.h"
#include "worker/engine/base/file.h"
#include "worker/engine/base/memory.h"
#include "worker/engine/base/strings.h"
#include "worker/engine/tokenizer/quantry_tokenizer.h"

namespace quantry::engine {
namespace {

constexpr uint64_t kMaxTokenizerBytes = 256ull << 20;

std::string LastError() {
  std::string message(1000, '\0');
  const size_t length = qt_last_error(reinterpret_cast<uint8_t*>(message.data()), message.size());
  message.resize(std::min(length, message.size()));
  return Printable(message, 600);
}

const uint8_t* Bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

EngineError Invalid(const std::string& path, const std::string& problem) {
  return UserError("INVALID_TOKENIZER", StrCat(path, ": ", problem),
                   {{"path", path}, {"problem", problem}});
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::Load(const std::string& path) {
  return FromJson(ReadFile(path, kMaxTokenizerBytes, "INVALID_TOKENIZER"), path);
}

std::shared_ptr<const Tokenizer> Tokenizer::FromJson(std::string_view json,
                                                     const std::string& path) {
  QtTokenizer* handle = nullptr;
  if (json.empty() || qt_load(Bytes(json), json.size(), &handle) != 0) {
    throw Invalid(path, StrCat("not a tokenizer.json of Hugging Face tokenizers: ",
                               json.empty() ? "it is empty" : LastError()));
  }
  std::shared_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->path_ = path;
  tokenizer->handle_ = handle;
  const uint64_t size = qt_vocabulary_size(handle);
  if (size == 0 || size > uint64_t{std::numeric_limits<int32_t>::max()}) {
    throw Invalid(path, StrCat("its vocabulary has ", size, " ids"));
  }
  tokenizer->vocab_size_ = static_cast<int64_t>(size);
  return tokenizer;
}

Tokenizer::~Tokenizer() { qt_free(static_cast<QtTokenizer*>(handle_)); }

std::vector<int32_t> Tokenizer::Encode(std::string_view text, size_t piece_bytes) const {
  if (text.empty()) return {};
  uint32_t* ids = nullptr;
  size_t count = 0;
  const auto* handle = static_cast<const QtTokenizer*>(handle_);
  if (qt_encode(handle, Bytes(text), text.size(), piece_bytes, &ids, &count) != 0) {
    throw Invalid(path_, StrCat("cannot encode ", text.size(), " bytes of text: ", LastError()));
  }
  std::vector<int32_t> result(ids, ids + count);
  qt_free_ids(ids, count);
  // The crate's work space is many times the text; give it back.
  ReturnFreedMemory();
  return result;
}

std::vector<int32_t> Tokenizer::EncodePrompt(std::string_view text) const {
  uint32_t* ids = nullptr;
  size_t count = 0;
  const auto* handle = static_cast<const QtTokenizer*>(handle_);
  const std::string_view given = text.empty() ? std::string_view("") : text;  // never null
  if (qt_encode_prompt(handle, Bytes(given), given.size(), &ids, &count) != 0) {
    throw Invalid(path_, StrCat("cannot encode ", text.size(), " bytes of text: ", LastError()));
  }
  std::vector<int32_t> result(ids, ids + count);
  qt_free_ids(ids, count);
  return result;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids) const {
  const std::vector<uint32_t> unsigned_ids(ids.begin(), ids.end());
  uint8_t* text = nullptr;
  size_t length = 0;
  const auto* handle = static_cast<const QtTokenizer*>(handle_);
  if (qt_decode(handle, unsigned_ids.data(), unsigned_ids.size(), &text, &length) != 0) {
    throw Invalid(path_, StrCat("cannot decode ", ids.size(), " ids: ", LastError()));
  }
  std::string result(reinterpret_cast<const char*>(text), length);
  qt_free_text(text, length);
  return result;
}

void Tokenizer::CheckIds(const std::vector<int32_t>& ids, int64_t model_vocab_size) const {
  const auto largest = std::max_element(ids.begin(), ids.end());
  if (largest == ids.end() || *largest < model_vocab_size) return;
  throw UserError(
      "INVALID_TOKENIZER",
      StrCat(path_, " makes the id ", *largest, " of the text, the model's vocabulary (",
             "vocab_size in config.json) ends at ", model_vocab_size - 1,
             ": tokenizer and weights belong to different models"),
      {{"id", std::to_string(*largest)},
       {"tokenizer_ids", std::to_string(vocab_size_)},
       {"vocab_size", std::to_string(model_vocab_size)}});
}

}  // namespace quantry::engine
