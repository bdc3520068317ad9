#pragma once

#include <cstdint>
#include <vector>

#include "worker/engine/kernels/bit_kernel.h"

namespace quantry::engine {

// A matrix of unsigned integers of 1 to 8 bits, each bit a plane of its own,
// rearranged for BitKernel::accumulate: rows in tiles of 32, columns in blocks
// of up to 1,024, eight columns a byte.
//
//   planes x blocks x tiles x byte columns x 32 bytes
//
// Rows are filled up to whole tiles and columns to a multiple of 16; the
// filling is 0, and whatever stood there would meet activations of 0. Takes
// bits / 8 bytes a value. Immutable.
class BitTiles {
 public:
  // values: [rows, columns] row after row, each below 2^bits.
  BitTiles(const uint8_t* values, int64_t rows, int64_t columns, int bits);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t tiles() const { return (rows_ + kTileRows - 1) / kTileRows; }
  int64_t padded_columns() const { return byte_columns_ * 8; }
  int64_t groups() const { return padded_columns() / kGroupColumns; }
  int64_t bytes() const { return static_cast<int64_t>(data_.size()); }
  // Sum of the planes' weights: what an offset of the tables is multiplied by.
  int64_t plane_weights() const { return (int64_t{1} << bits_) - 1; }

  // For every row of tiles [first, last):
  //   sums[token][row] += sum_j value[row, j] * x[token][j] + plane_weights * offset
  // tables: [tokens][groups() * kTableBytes]; sums: [tokens], `stride` apart,
  // starting at row first * kTileRows.
  void Accumulate(const BitKernel& kernel, int64_t first, int64_t last, const uint8_t* tables,
                  int64_t tokens, uint64_t* sums, int64_t stride) const;

 private:
  struct Piece {
    int bit;
    int64_t first_byte;  // column / 8
    int64_t byte_columns;
    int64_t offset;  // of its tiles in data_
  };
  void Fill(const uint8_t* values, const Piece& piece);

  int64_t rows_;
  int64_t columns_;
  int bits_;
  int64_t byte_columns_;
  std::vector<Piece> pieces_;
  std::vector<uint8_t> data_;
};

}  // namespace quantry::engine
