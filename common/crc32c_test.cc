#include "common/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace quantry {
namespace {

TEST(Crc32cTest, KnownVectors) {
  const struct {
    std::string data;
    uint32_t crc;
  } cases[] = {
      {"", 0},
      {"123456789", 0xE3069283},
      {std::string(32, '\0'), 0x8A9136AA},    // RFC 3720 B.4
      {std::string(32, '\xFF'), 0x62A8AB43},  // RFC 3720 B.4
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Crc32c(c.data), c.crc) << c.data.size();
    EXPECT_EQ(Crc32cPortable(c.data), c.crc) << c.data.size();
  }
}

TEST(Crc32cTest, HardwareEqualsPortableAtEveryLengthAndSplit) {
  std::string data;
  for (int i = 0; i < 100; ++i) data.push_back(static_cast<char>(i * 37 + 11));
  for (size_t size = 0; size <= data.size(); ++size) {
    std::string_view head = std::string_view(data).substr(0, size);
    std::string_view tail = std::string_view(data).substr(size);
    EXPECT_EQ(Crc32c(head), Crc32cPortable(head)) << size;
    EXPECT_EQ(Crc32c(tail, Crc32c(head)), Crc32c(data)) << size;
    EXPECT_EQ(Crc32cPortable(tail, Crc32cPortable(head)), Crc32c(data)) << size;
  }
}

}  // namespace
}  // namespace quantry
