#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace quantry::engine {

// A Hugging Face tokenizer.json, through the tokenizers crate behind a C ABI
// (rust/). Immutable; Encode may run on several threads.
class Tokenizer {
 public:
  // Throws UserError INVALID_TOKENIZER (absent, too large, not a tokenizer).
  static std::shared_ptr<const Tokenizer> Load(const std::string& path);
  static std::shared_ptr<const Tokenizer> FromJson(std::string_view json, const std::string& path);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Pieces a long text is worked on in, which bounds the work space to some 10 MB; where a
  // text cannot be cut it is some 100 bytes a character.
  static constexpr size_t kPieceBytes = 64 << 10;

  // Token ids of the whole text, no special tokens added. `text` is UTF-8.
  // The ids do not depend on piece_bytes (0 = all at once), which is used only
  // where that holds: see rust/src/pieces.rs.
  std::vector<int32_t> Encode(std::string_view text, size_t piece_bytes = kPieceBytes) const;

  // Token ids of a prompt, with the special tokens (such as one for the
  // beginning) tokenizer.json adds to a model's input.
  std::vector<int32_t> EncodePrompt(std::string_view text) const;

  // Text of ids, special tokens left out. UTF-8; bytes that do not make a whole
  // character (yet) come out as U+FFFD.
  std::string Decode(const std::vector<int32_t>& ids) const;

  // One more than the largest id, added tokens included.
  int64_t vocab_size() const { return vocab_size_; }

  // Refuses ids of a text that the model's embedding lacks: UserError
  // INVALID_TOKENIZER. Ids that no text has may lie beyond it, such as one for
  // padding that was added later.
  void CheckIds(const std::vector<int32_t>& ids, int64_t model_vocab_size) const;

 private:
  Tokenizer() = default;

  std::string path_;
  void* handle_ = nullptr;
  int64_t vocab_size_ = 0;
};

}  // namespace quantry::engine
