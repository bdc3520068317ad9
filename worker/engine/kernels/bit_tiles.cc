#include "worker/engine/kernels/bit_tiles.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace quantry::engine {
namespace {

// The kernels take two byte columns at a time.
constexpr int64_t kColumnUnit = 16;

// Bit `bit` of `count` values, the first one lowest.
uint8_t Gather(const uint8_t* values, int64_t count, int bit) {
  unsigned byte = 0;
  for (int64_t i = 0; i < count; ++i) byte |= ((values[i] >> bit) & 1U) << i;
  return static_cast<uint8_t>(byte);
}

}  // namespace

BitTiles::BitTiles(const uint8_t* values, int64_t rows, int64_t columns, int bits)
    : rows_(rows),
      columns_(columns),
      bits_(bits),
      byte_columns_((columns + kColumnUnit - 1) / kColumnUnit * kColumnUnit / 8) {
  int64_t offset = 0;
  for (int bit = 0; bit < bits; ++bit) {
    for (int64_t first = 0; first < byte_columns_; first += kMaxByteColumns) {
      const int64_t count = std::min(kMaxByteColumns, byte_columns_ - first);
      pieces_.push_back({bit, first, count, offset});
      offset += tiles() * count * kTileRows;
    }
  }
  data_.assign(offset, 0);
  for (const Piece& piece : pieces_) Fill(values, piece);
}

void BitTiles::Fill(const uint8_t* values, const Piece& piece) {
  at::parallel_for(0, tiles(), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kTileRows; i < end * kTileRows; ++i) {
      const int64_t row = i / kTileRows * kTileRows + TileRow(i % kTileRows);
      if (row >= rows_) continue;
      uint8_t* to = data_.data() + piece.offset + i / kTileRows * piece.byte_columns * kTileRows +
                    i % kTileRows;
      for (int64_t b = 0; b < piece.byte_columns; ++b) {
        const int64_t column = (piece.first_byte + b) * 8;
        const int64_t count = std::clamp<int64_t>(columns_ - column, 0, 8);
        to[b * kTileRows] = Gather(values + row * columns_ + column, count, piece.bit);
      }
    }
  });
}

void BitTiles::Accumulate(const BitKernel& kernel, int64_t first, int64_t last,
                          const uint8_t* tables, int64_t tokens, uint64_t* sums,
                          int64_t stride) const {
  // Tokens inside the piece: its weights come from memory once, its tables
  // stay in the first-level cache over all tiles.
  for (const Piece& piece : pieces_) {
    const uint8_t* bits = data_.data() + piece.offset + first * piece.byte_columns * kTileRows;
    for (int64_t token = 0; token < tokens; ++token) {
      const int64_t group = token * groups() + piece.first_byte * 2;
      kernel.accumulate(bits, last - first, piece.byte_columns, tables + group * kTableBytes,
                        piece.bit, sums + token * stride);
    }
  }
}

}  // namespace quantry::engine
