#include "worker/engine/inference/text_stream.h"

#include <utility>

namespace quantry::engine {
namespace {

constexpr char kReplacement[] = "\xef\xbf\xbd";  // U+FFFD
// A character has at most four bytes, so at most four byte tokens; what still
// ends in U+FFFD after them is so.
constexpr size_t kMaxPending = 4;
// Tokens before the new ones that decide about their text.
constexpr size_t kContext = 4;

}  // namespace

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::vector<int32_t> ids)
    : tokenizer_(std::move(tokenizer)), ids_(std::move(ids)), shown_(ids_.size()) {}

std::string TextStream::Fresh() const {
  const std::string before =
      tokenizer_->Decode(std::vector<int32_t>(ids_.begin(), ids_.begin() + shown_));
  const std::string all = tokenizer_->Decode(ids_);
  return all.size() > before.size() ? all.substr(before.size()) : "";
}

std::string TextStream::Add(int32_t id) {
  ids_.push_back(id);
  if (shown_ > kContext) {
    ids_.erase(ids_.begin(), ids_.begin() + static_cast<int64_t>(shown_ - kContext));
    shown_ = kContext;
  }
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
