#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "worker/engine/base/on_bytes.h"

namespace quantry::engine {

// SHA-256 (FIPS 180-4), for the manifest; the engine links no crypto library.
// Not thread-safe; one object a message.
class Sha256 {
 public:
  Sha256();
  void Update(const void* data, size_t bytes);
  // 64 lower-case hex digits. Call once, last.
  std::string Finish();

 private:
  void Compress(const uint8_t* block, size_t count);

  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_;
  uint64_t bytes_ = 0;
};

std::string Sha256OfText(std::string_view text);

struct FileDigest {
  uint64_t bytes = 0;
  std::string sha256;
};

// Reads the file once, in pieces. Throws EngineError ENVIRONMENT "READ_FAILED".
FileDigest Sha256OfFile(const std::string& path, const OnBytes& on_bytes = {});

}  // namespace quantry::engine
