#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace quantry::engine {

// Who can do something about a failure; mirrors FailureClass in engine.proto.
enum class FailureClass { kUser, kEnvironment, kResource, kBug };

// The engine's only exception type of its own. `main` turns it (and whatever
// LibTorch throws) into one `error` event. `reason` is a stable name from
// docs/api/errors.md; `what()` says what was wanted, what was got, and what to
// do next; every value in the text is in `metadata` too.
class EngineError : public std::runtime_error {
 public:
  EngineError(FailureClass who, std::string why, const std::string& message,
              std::map<std::string, std::string> values = {})
      : std::runtime_error(message),
        failure_class(who),
        reason(std::move(why)),
        metadata(std::move(values)) {}

  FailureClass failure_class;
  std::string reason;
  std::map<std::string, std::string> metadata;
};

// The input or the spec is wrong.
inline EngineError UserError(std::string reason, const std::string& message,
                             std::map<std::string, std::string> metadata = {}) {
  return EngineError(FailureClass::kUser, std::move(reason), message, std::move(metadata));
}

}  // namespace quantry::engine
