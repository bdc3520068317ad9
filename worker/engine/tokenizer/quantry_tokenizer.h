#pragma once

// C ABI of rust/: Hugging Face tokenizers as a static library. Calls on one
// tokenizer may run on several threads, except qt_free. No call unwinds.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct QtTokenizer QtTokenizer;

// tokenizer.json from memory. 0, or -1 (see qt_last_error) with *out untouched.
int32_t qt_load(const uint8_t* json, size_t length, QtTokenizer** out);

// Ids of UTF-8 text without added special tokens; free them with qt_free_ids.
// `piece` > 0: work in pieces of about that many bytes where that provably
// gives the same ids (rust/src/pieces.rs); 0: the whole text at once.
// qt_encode_prompt adds the special tokens a model's input starts or ends with.
int32_t qt_encode(const QtTokenizer* tokenizer, const uint8_t* text, size_t length, size_t piece,
                  uint32_t** ids, size_t* count);
int32_t qt_encode_prompt(const QtTokenizer* tokenizer, const uint8_t* text, size_t length,
                         uint32_t** ids, size_t* count);
void qt_free_ids(uint32_t* ids, size_t count);

// UTF-8 text of ids, special tokens left out; free it with qt_free_text. Bytes
// that are no whole character yet come out as U+FFFD.
int32_t qt_decode(const QtTokenizer* tokenizer, const uint32_t* ids, size_t count, uint8_t** text,
                  size_t* length);
void qt_free_text(uint8_t* text, size_t length);

// One more than the largest id, added tokens included; 0 when empty.
uint64_t qt_vocabulary_size(const QtTokenizer* tokenizer);

void qt_free(QtTokenizer* tokenizer);

// The calling thread's last error, cut to `capacity` bytes without a final NUL;
// returns its whole length.
size_t qt_last_error(uint8_t* buffer, size_t capacity);

#ifdef __cplusplus
}
#endif
