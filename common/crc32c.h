#pragma once

#include <cstdint>
#include <string_view>

// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), the checksum of every
// chunk on the wire. Crc32c("123456789") == 0xE3069283.
namespace quantry {

// `crc` continues an earlier result: Crc32c(b, Crc32c(a)) == Crc32c(a + b).
// Uses the processor's instruction where it has one.
uint32_t Crc32c(std::string_view data, uint32_t crc = 0);

// Table-driven reference; what machines without the instruction run.
uint32_t Crc32cPortable(std::string_view data, uint32_t crc = 0);

}  // namespace quantry
