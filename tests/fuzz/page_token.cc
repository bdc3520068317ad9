// Page tokens: foreign ones, and one made of the input, come back as they are.
#include "server/rpc/page_token.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry::server;
  static const PageTokens tokens("0123456789abcdef0123456789abcdef");
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)tokens.DecodeCursor("scope", text).ok();
  (void)tokens.DecodeSequence("scope", text).ok();
  Cursor cursor;
  cursor.uid = text;
  const std::string token = tokens.Encode(text, cursor);
  const auto again = tokens.DecodeCursor(text, token);
  if (again.ok() && !(*again == cursor)) __builtin_trap();
  if (tokens.DecodeCursor(text + "x", token).ok()) __builtin_trap();
  return 0;
}
