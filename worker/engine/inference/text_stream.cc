#include "worker/engine/inference/text_stream.h"

#include <utility>

namespace quantry::engine {
namespace {

constexpr char kReplacement[] = "\xef\xbf\xbd";  // U+FFFD
// A character has at most four bytes, so at most four byte tokens; what still
// ends in U+FFFD after them is so.
constexpr size_t kMaxPending = 4;
// Tokens before the new ones that decide about their text: at least so many,
// and more where they would begin inside a character. Byte tokens in a row are
// one text to the tokenizer, and a piece of a character spoils all of it.
constexpr size_t kContext = 4;
constexpr size_t kMostContext = 32;

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::vector<int32_t> ids)
    : tokenizer_(std::move(tokenizer)), ids_(std::move(ids)), shown_(ids_.size()) {}

std::string TextStream::Fresh() const {
  const std::string before =
      tokenizer_->Decode(std::vector<int32_t>(ids_.begin(), ids_.begin() + shown_));
  const std::string all = tokenizer_->Decode(ids_);
  // A stray byte token turns those before it into U+FFFD, also of characters that were whole and
  // are shown: what is new then begins at the next character.
  size_t begin = before.size();
  while (begin < all.size() && IsContinuation(all[begin])) ++begin;
  return begin < all.size() ? all.substr(begin) : "";
}

void TextStream::Keep(size_t shown) {
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<int64_t>(shown_ - shown));
  shown_ = shown;
}

void TextStream::ForgetOld() {
  for (size_t kept = kContext; kept < shown_ && kept <= kMostContext; ++kept) {
    const auto end = ids_.begin() + static_cast<int64_t>(shown_);
    const std::string text = tokenizer_->Decode({end - static_cast<int64_t>(kept), end});
    if (text.find(kReplacement) == std::string::npos) return Keep(kept);
  }
  if (shown_ > kMostContext) Keep(kContext);  // it never was text
}

std::string TextStream::Add(int32_t id) {
  ForgetOld();
  ids_.push_back(id);
  const std::string fresh = Fresh();
  if (fresh.ends_with(kReplacement) && ids_.size() - shown_ < kMaxPending) return "";
  shown_ = ids_.size();
  return fresh;
}

std::string TextStream::Finish() {
  const std::string fresh = Fresh();
  shown_ = ids_.size();
  return fresh;
}

}  // namespace quantry::engine
