// How a batch of activations lies in memory, for kernels/ only.
//
// Columns (tokens) stand in tiles of `tile_columns`, the last one ragged. Inside a tile of n columns
// whatever belongs together for one step of k lies together:
//
//   codes    int8  [k / 4][n][4]         quantised, in [-127, 127]
//   scales   f32   [k / group][n]        x = scale * code
//   sums     f32   [k / group][n]        sum of the group's codes: an exact integer
//   offsets  int32 [k / group][n]        the same sum, negated: what a code offset of 1 subtracts
//   half_... the same for each half group (16 columns), when group is 32
//   values   f32   [k][n]                instead of all these, when group is 0
//
// The data of the tile that starts at column c begins at c * (elements of one column).
#pragma once

#include <cstdint>

#include "kernels/multiply.h"
#include "weights/layout.h"

namespace bitqwen {

struct GeneratedKernel;

struct ActivationBatch::Layout {
  int max_columns = 0;
  int64_t max_k = 0;
  int columns = 0;
  int64_t k = 0;
  int group = 0;
  int tile_columns = 1;

  PackedBuffer buffer;
  int8_t* codes = nullptr;
  float* scales = nullptr;
  float* sums = nullptr;
  int32_t* offsets = nullptr;
  float* half_sums = nullptr;
  int32_t* half_offsets = nullptr;
  float* values = nullptr;

  // For a generated kernel, if there is one: each column's tables, then its scales f32 [k / group].
  const GeneratedKernel* generated = nullptr;
  PackedBuffer tables;
  int64_t column_bytes = 0;

  int64_t groups() const { return k / group; }
  bool has_halves() const { return group == 32; }
  int tile_begin(int column) const { return column / tile_columns * tile_columns; }
  int tile_size(int begin) const { return columns - begin < tile_columns ? columns - begin : tile_columns; }
};

/// Below this greatest magnitude a group counts as zero: 127 / magnitude would overflow.
inline constexpr float kTinyActivation = 0x1p-119f;

}  // namespace bitqwen
