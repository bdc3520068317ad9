#include "common/engine_error.h"

#include <map>
#include <string>
#include <utility>

#include "common/utf8_prefix.h"

namespace quantry {
namespace {

constexpr std::size_t kMaxMetadata = 16;
constexpr std::size_t kMaxMetadataBytes = 1 << 10;
constexpr std::size_t kMaxNameBytes = 64;

}  // namespace

v1::EngineError Bounded(v1::EngineError error) {
  error.set_reason(Utf8Prefix(error.reason(), kMaxNameBytes));
  error.set_message(Utf8Prefix(error.message(), kMaxErrorMessageBytes));
  const std::map<std::string, std::string> sorted(error.metadata().begin(), error.metadata().end());
  google::protobuf::Map<std::string, std::string> metadata;
  for (const auto& [key, value] : sorted) {
    if (metadata.size() >= kMaxMetadata) break;
    metadata[Utf8Prefix(key, kMaxNameBytes)] = Utf8Prefix(value, kMaxMetadataBytes);
  }
  *error.mutable_metadata() = std::move(metadata);
  return error;
}

}  // namespace quantry
