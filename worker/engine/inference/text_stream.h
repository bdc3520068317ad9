#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "worker/engine/tokenizer/tokenizer.h"

namespace quantry::engine {

// The text of tokens as they come, in whole characters. A tokenizer may give a
// token other text after others (a space before a word, parts of a character),
// so each one is decoded together with the one before.
class TextStream {
 public:
  // `ids`: tokens already shown, whose text is not returned again.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::vector<int32_t> ids);

  // What the next token adds; empty while a character is not complete.
  std::string Add(int32_t id);
  // What is left of an incomplete character.
  std::string Finish();

 private:
  std::string Fresh() const;
  void Keep(size_t shown);  // drops all but the last so many of those shown
  void ForgetOld();

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<int32_t> ids_;  // the last ones shown, then those not shown yet
  size_t shown_;              // how many of ids_ are shown
};

}  // namespace quantry::engine
