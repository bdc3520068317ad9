// tokenizer.json through the C ABI of the tokenizers crate, then some text.
#include "worker/engine/tokenizer/tokenizer.h"
#include "worker/engine/base/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer =
        quantry::engine::Tokenizer::FromJson({reinterpret_cast<const char*>(data), size}, "fuzz");
    for (const char* text : {"", "Once upon a time", "\xc3\xa4\xe2\x82\xac \n<s>"}) {
      for (const int32_t id : tokenizer->Encode(text)) {
        if (id < 0 || id >= tokenizer->vocab_size()) __builtin_trap();
      }
      (void)tokenizer->Decode(tokenizer->EncodePrompt(text));
    }
  } catch (const quantry::engine::EngineError&) {
  }
  return 0;
}
