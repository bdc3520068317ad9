// What strangers say to the admin port: the request line, the Host, and the
// traceparent that clients of the API send too.
#include "common/http_message.h"

#include "common/http_host.h"
#include "common/trace_context.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const HttpRequest request = ParseRequestLine(text);
  const bool known = text.starts_with("GET ") || text.starts_with("HEAD ");
  if (request.error == 0 && !known) __builtin_trap();
  if (request.path.find_first_of("? ") != std::string::npos) __builtin_trap();
  const std::string answer = RenderResponse({.body = std::string(text)}, request.head);
  if (!request.head && !answer.ends_with(text)) __builtin_trap();

  static const HttpHostRule rule({"status.example.com"}, /*any=*/false);
  static const HttpHostRule any({}, /*any=*/true);
  (void)rule.Refusal(text);
  if (!any.Refusal(text).empty()) __builtin_trap();

  const auto context = ParseTraceparent(text);
  if (!context) return 0;
  const auto again = ParseTraceparent(FormatTraceparent(*context));
  if (!again || again->trace_id != context->trace_id || again->parent_id != context->parent_id ||
      again->sampled != context->sampled || TraceIdOf(text).size() != 32) {
    __builtin_trap();
  }
  return 0;
}
