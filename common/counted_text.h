#pragma once

#include <cstdint>

namespace quantry {

// A quote counts the tokens of a text up to this size, where its bytes leave a
// doubt that it holds the windows asked for: that is at most six bytes a token, so
// this is enough for every recipe's windows (512 of 2048), and takes about two
// seconds. Of a larger one it knows the size alone, and the server places no more
// of it.
inline constexpr std::int64_t kMostCountedTextBytes = std::int64_t{8} << 20;

}  // namespace quantry
