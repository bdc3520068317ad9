#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <google/protobuf/timestamp.pb.h>

// Numbers, times and tables as people read them. Pure.
namespace quantry::cli {

std::string Bytes(int64_t bytes);                       // "812 B", "1.4 MB" (powers of 1000)
std::string Percent(double ratio);                      // " 7%", clamped to 0..100
std::string Seconds(double seconds);                    // "0.8 s", "12 s", "3m 04s", "2h 05m"
std::string Number(double value, int significant = 5);  // "4.2318", "n/a" when not finite

// "2026-01-31T12:00:00Z"; "" for an absent time.
std::string Rfc3339(const google::protobuf::Timestamp& time);
// "now", "12 s", "5 m", "3 h", "9 d" before `now`; "" for an absent time.
std::string Age(const google::protobuf::Timestamp& time, std::chrono::system_clock::time_point now);
// The same as a point in time: "now", "12 s ago".
std::string Ago(const google::protobuf::Timestamp& time, std::chrono::system_clock::time_point now);

// Server text without control characters, so that it cannot drive a terminal.
std::string Plain(std::string_view text);

// Columns padded to the widest cell, two spaces apart; the first row is the
// head. Cells that only hold a number are not treated specially.
std::string Table(const std::vector<std::vector<std::string>>& rows);

// "  name      value" lines with the values aligned; long values go on in the
// next line, below their start.
std::string Fields(const std::vector<std::pair<std::string, std::string>>& fields);

}  // namespace quantry::cli
