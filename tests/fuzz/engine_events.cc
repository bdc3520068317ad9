// Lines of an engine's stdout, as the agent takes them.
#include "worker/agent/engine_runner.h"
#include "worker/agent/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry::agent;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto event = ParseEngineEvent(text);
  if (event.ok() && event->has_error()) (void)ToValidUtf8(event->error().message());
  const std::string clean = ToValidUtf8(text);
  if (clean.size() != text.size() || ToValidUtf8(clean) != clean) __builtin_trap();
  (void)MethodNames(text).ok();
  (void)ClassifyExit(size > 0 ? data[0] : 0, size > 1 ? data[1] % 65 : 0, false, text);
  return 0;
}
