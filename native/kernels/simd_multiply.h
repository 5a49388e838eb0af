// The matrix products, written once over a set of vectors `V` of the header
// that each instruction set's file names in BITQWEN_VECTORS. All names are local to that file: nothing
// compiled with an instruction set's flags may be shared with code that runs on every CPU.
//
// V offers, for 16 rows at a time:
//   Bytes    4 codes of each row          load, store, field, field_in_place, with_field
//   Floats   one float of each row        zero, load, store, broadcast, from_half, from_bfloat16, from_u8,
//                                         from_s8, add_constant, negate, mul, fma
//   Quad     4 activations for all rows   quad
//   Dot<b>   sums of codes of b bits      start, start_offset, start_scaled_offset, add<step>, add_shifted, value
//   kTileColumns, kPanelBlocks, kFewColumns, kUsesBits, kSumsInPlace
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/activations.h"
#include "kernels/simd_inline.h"
#include "kernels/table.h"
#include "weights/layout.h"
#include BITQWEN_VECTORS

namespace bitqwen {
namespace {

constexpr int kSteps = kChunk / 4;    // of one chunk; a step is 4 columns
// Ahead in the one stream that a row block is. On the machines tried (Zen 4), one stream with this
// distance reads at the memory's speed; several streams side by side do worse.
constexpr int kPrefetchBytes = 4096;
constexpr int kPanelColumns = 512;    // of an unpacked panel: with its scales it stays in L1
constexpr int kBatchColumns = 384;    // activation columns that pass over one panel

template <int... kIndex, class Body>
BITQWEN_INLINE void each_index(std::integer_sequence<int, kIndex...>, Body&& body) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, class Body>
BITQWEN_INLINE void unrolled(Body&& body) {
  each_index(std::make_integer_sequence<int, kCount>{}, body);
}

// Where one tile's activations stand, from some column k on. n columns interleaved.
struct TileView {
  const int8_t* codes;
  const float* scales;
  const float* sums;       // of cells
  const int32_t* offsets;  // of cells
};

template <Format kFormat>
BITQWEN_INLINE TileView tile_view(const ActivationBatch::Layout& x, int begin, int n, int64_t k) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr bool kHalves = kInfo.cell < kInfo.group;
  const int64_t group_at = begin * (x.k / kInfo.group) + k / kInfo.group * n;
  const int64_t cell_at = begin * (x.k / kInfo.cell) + k / kInfo.cell * n;
  return {x.codes + begin * x.k + k * n, x.scales + group_at, (kHalves ? x.half_sums : x.sums) + cell_at,
          (kHalves ? x.half_offsets : x.offsets) + cell_at};
}

// Codes of 2 and 4 bits may be multiplied where they lie in the byte, without a shift, if every place
// has sums of its own: those of place p come out 2^(bits * p) times too large, exactly.
template <Format kFormat, int kColumns>
constexpr int places() {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kCount = 8 / kInfo.low_bits;
  constexpr bool kEnoughRegisters = kCount * kColumns <= 12;
  return V::kSumsInPlace && kInfo.high_bits == 0 && kEnoughRegisters ? kCount : 1;
}

/// The codes of step kStep of a chunk (4 columns of 16 rows), at bit 0 or in place.
template <Format kFormat, int kStep, bool kInPlace = false>
BITQWEN_INLINE V::Bytes step_codes(const uint8_t* chunk) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kLowPerVector = 8 / kInfo.low_bits;
  if constexpr (kInPlace) {
    return V::template field_in_place<kInfo.low_bits, kStep % kLowPerVector * kInfo.low_bits>(
        V::load(chunk + 64 * (kStep / kLowPerVector)));
  }
  V::Bytes codes = V::template field<kInfo.low_bits, kStep % kLowPerVector * kInfo.low_bits>(
      V::load(chunk + 64 * (kStep / kLowPerVector)));
  if constexpr (kInfo.high_bits > 0) {
    constexpr int kHighPerVector = 8 / kInfo.high_bits;
    codes = V::template with_field<kInfo.high_bits, kStep % kHighPerVector * kInfo.high_bits, kInfo.low_bits>(
        codes, V::load(chunk + kInfo.low_bytes() + 64 * (kStep / kHighPerVector)));
  }
  return codes;
}

/// A unit's scales; sub-scales of 6 and 4 bits are opened for all cells at once.
template <Format kFormat>
struct UnitScales {
  static constexpr FormatInfo kInfo = format_info(kFormat);
  static constexpr bool kOpened = kInfo.scale == ScaleKind::k6Bit || kInfo.scale == ScaleKind::k6BitMin ||
                                  kInfo.scale == ScaleKind::k4BitMin;
  const uint8_t* unit;
  V::Floats d;
  V::Floats minus_dmin;
  alignas(64) uint8_t scales[kOpened ? 16 * kInfo.cells() : 1];
  alignas(64) uint8_t minima[kOpened ? 16 * kInfo.cells() : 1];

  BITQWEN_INLINE explicit UnitScales(const uint8_t* from) : unit(from), d(V::from_half(from)) {
    if constexpr (kInfo.has_minimum()) minus_dmin = V::from_half(from + 32);
    if constexpr (kInfo.scale == ScaleKind::k6BitMin) {
      minus_dmin = V::negate(minus_dmin);
      const V::Bytes a = V::load(from + 64), b = V::load(from + 128), c = V::load(from + 192);
      V::store(scales, V::template field<6, 0>(a));
      V::store(minima, V::template field<6, 0>(b));
      V::store(scales + 64, V::template with_field<2, 6, 4>(V::template field<4, 0>(c), a));
      V::store(minima + 64, V::template with_field<2, 6, 4>(V::template field<4, 4>(c), b));
    } else if constexpr (kInfo.scale == ScaleKind::k4BitMin) {
      minus_dmin = V::negate(minus_dmin);
      for (int i = 0; i < 4; ++i) {
        const V::Bytes both = V::load(from + 64 + 64 * i);
        V::store(scales + 64 * i, V::template field<4, 0>(both));
        V::store(minima + 64 * i, V::template field<4, 4>(both));
      }
    } else if constexpr (kInfo.scale == ScaleKind::k6Bit) {
      const V::Bytes a = V::load(from + 32), b = V::load(from + 96), high = V::load(from + 160);
      V::store(scales, V::template with_field<2, 0, 4>(V::template field<4, 0>(a), high));
      V::store(scales + 64, V::template with_field<2, 2, 4>(V::template field<4, 0>(b), high));
      V::store(scales + 128, V::template with_field<2, 4, 4>(V::template field<4, 4>(a), high));
      V::store(scales + 192, V::template with_field<2, 6, 4>(V::template field<4, 4>(b), high));
    }
  }

  BITQWEN_INLINE V::Floats scale(int cell) const {
    if constexpr (kInfo.scale == ScaleKind::k8Bit) return V::mul(d, V::from_s8(unit + 32 + 16 * cell));
    if constexpr (kInfo.scale == ScaleKind::k6Bit) {
      return V::mul(d, V::add_constant(V::from_u8(scales + 16 * cell), -32.0f));
    }
    if constexpr (kOpened) return V::mul(d, V::from_u8(scales + 16 * cell));
    return d;
  }
  BITQWEN_INLINE V::Floats minus_minimum(int cell) const {
    if constexpr (kInfo.scale == ScaleKind::kFlatMin) return minus_dmin;  // the file's m is added
    return V::mul(minus_dmin, V::from_u8(minima + 16 * cell));
  }
};

// ---------------------------------------------------------------------------------------- few columns

/// Adds one unit's products to sums[c]; `x` stands at the unit's first column.
template <Format kFormat, int kColumns>
BITQWEN_INLINE void add_unit(const uint8_t* unit, const TileView& x, V::Floats (&sums)[kColumns]) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kChunksPerCell = kInfo.cell / kChunk > 0 ? kInfo.cell / kChunk : 1;
  constexpr int kStepsPerCell = kInfo.cell < kChunk ? kInfo.cell / 4 : kSteps;  // within one chunk
  constexpr int kPlaces = places<kFormat, kColumns>();
  constexpr int kPairs = kInfo.cell < kChunk ? kChunk / kInfo.cell : 1;         // cells within one chunk
  using Dot = V::template Dot<kInfo.bits()>;
  const UnitScales<kFormat> scales(unit);
  const uint8_t* chunk = unit + kInfo.header_bytes();
  const int8_t* codes = x.codes;
  for (int g = 0; g < kInfo.unit / kInfo.group; ++g) {
    V::Floats t[kColumns];
    unrolled<kPairs>([&](auto pair) BITQWEN_INLINE_LAMBDA {
      constexpr int kPair = decltype(pair)::value;
      const int cell = g * kPairs + kPair;
      Dot dot[kColumns][kPlaces];
      BITQWEN_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        BITQWEN_UNROLL
        for (int p = 0; p < kPlaces; ++p) dot[c][p].start();
        if constexpr (kInfo.offset != 0) {
          dot[c][0].template start_offset<kInfo.offset>(x.offsets + cell * kColumns + c);
        }
      }
      for (int part = 0; part < kChunksPerCell; ++part) {
        if constexpr (kPair == 0) {
          for (int i = 0; i < kInfo.chunk_bytes(); i += 64) V::prefetch(chunk + kPrefetchBytes + i);
        }
        unrolled<kStepsPerCell>([&](auto index) BITQWEN_INLINE_LAMBDA {
          constexpr int kStep = kPair * kStepsPerCell + decltype(index)::value;
          constexpr int kPlace = kStep % kPlaces;
          const V::Bytes w = step_codes<kFormat, kStep, kPlaces != 1>(chunk);
          BITQWEN_UNROLL
          for (int c = 0; c < kColumns; ++c) {
            dot[c][kPlace].template add<decltype(index)::value>(w, V::quad(codes + 4 * (kStep * kColumns + c)));
          }
        });
        if constexpr (kPair == kPairs - 1) {
          chunk += kInfo.chunk_bytes();
          codes += kChunk * kColumns;
        }
      }
      BITQWEN_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        unrolled<kPlaces - 1>([&](auto index) BITQWEN_INLINE_LAMBDA {
          constexpr int kPlace = decltype(index)::value + 1;
          dot[c][0].template add_shifted<kPlace * kInfo.low_bits>(dot[c][kPlace]);
        });
      }
      const V::Floats scale = scales.scale(cell);
      V::Floats minus_minimum;
      if constexpr (kInfo.has_minimum()) minus_minimum = scales.minus_minimum(cell);
      BITQWEN_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if constexpr (kInfo.has_minimum()) {
          const V::Floats sum = V::broadcast(x.sums + cell * kColumns + c);
          t[c] = kPair == 0 ? V::mul(minus_minimum, sum) : V::fma(minus_minimum, sum, t[c]);
          t[c] = V::fma(dot[c][0].value(), scale, t[c]);
        } else {
          t[c] = kPair == 0 ? V::mul(dot[c][0].value(), scale) : V::fma(dot[c][0].value(), scale, t[c]);
        }
      }
    });
    BITQWEN_UNROLL
    for (int c = 0; c < kColumns; ++c)
      sums[c] = V::fma(t[c], V::broadcast(x.scales + g * kColumns + c), sums[c]);
  }
}

BITQWEN_INLINE void store_rows(V::Floats sums, float* y, int64_t rows) {
  if (rows >= kRowBlock) {
    V::store(y, sums);
    return;
  }
  alignas(64) float all[kRowBlock];
  V::store(all, sums);
  for (int r = 0; r < rows; ++r) y[r] = all[r];
}

/// Row blocks straight from packed memory, for one tile of kColumns columns.
template <Format kFormat, int kColumns>
void multiply_tile(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, int tile, float* y, int64_t ldy,
                   int64_t row_begin, int64_t row_end) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  for (int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const uint8_t* unit = w.block(row / kRowBlock);
    V::Floats sums[kColumns];
    for (int c = 0; c < kColumns; ++c) sums[c] = V::zero();
    for (int64_t u = 0; u < w.units; ++u, unit += kInfo.unit_bytes()) {
      add_unit<kFormat, kColumns>(unit, tile_view<kFormat>(x, tile, kColumns, u * kInfo.unit), sums);
    }
    for (int c = 0; c < kColumns; ++c) store_rows(sums[c], y + (tile + c) * ldy + row, row_end - row);
  }
}

// --------------------------------------------------------------------------------------- many columns

/// kPanelBlocks row blocks x at most kPanelColumns columns, one byte a code, one float a scale.
struct Panel {
  static constexpr int kRows = V::kPanelBlocks * kRowBlock;
  alignas(64) uint8_t codes[kPanelColumns * kRows];            // [k / 4][kRows][4]
  alignas(64) float scales[kPanelColumns / 16 * kRows];        // [cell][kRows]
  alignas(64) float minus_minima[kPanelColumns / 16 * kRows];  // [cell][kRows]
};

template <Format kFormat>
void unpack_block(const uint8_t* unit, int units, int index, Panel& panel) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  uint8_t* codes = panel.codes + 64 * index;
  float* scale_at = panel.scales + kRowBlock * index;
  float* minimum_at = panel.minus_minima + kRowBlock * index;
  for (int u = 0; u < units; ++u, unit += kInfo.unit_bytes()) {
    const UnitScales<kFormat> scales(unit);
    for (int cell = 0; cell < kInfo.cells(); ++cell) {
      V::store(scale_at, scales.scale(cell));
      scale_at += Panel::kRows;
      if constexpr (kInfo.has_minimum()) {
        V::store(minimum_at, scales.minus_minimum(cell));
        minimum_at += Panel::kRows;
      }
    }
    const uint8_t* chunk = unit + kInfo.header_bytes();
    for (int i = 0; i < kInfo.unit / kChunk; ++i, chunk += kInfo.chunk_bytes()) {
      for (int j = 0; j < kInfo.chunk_bytes(); j += 64) V::prefetch(chunk + kPrefetchBytes + j);
      unrolled<kSteps>([&](auto step) BITQWEN_INLINE_LAMBDA {
        V::store(codes, step_codes<kFormat, decltype(step)::value>(chunk));
        codes += 4 * Panel::kRows;
      });
    }
  }
}

// What of a format the inner loop over a panel depends on: formats that agree share it.
struct PanelShape {
  int cell, group;
  bool minimum;
  int bits;
};
template <Format kFormat>
constexpr PanelShape panel_shape() {
  constexpr FormatInfo kInfo = format_info(kFormat);
  return {kInfo.cell, kInfo.group, kInfo.has_minimum(), V::kUsesBits ? kInfo.bits() : 0};
}

/// sums[c][row] += panel x tile over `groups` activation groups.
template <int kCell, int kGroup, bool kMinimum, int kBits, int kColumns>
void multiply_panel(const Panel& panel, const TileView& x, int offset, int groups, float* sums) {
  constexpr int kBlocks = V::kPanelBlocks;
  constexpr int kStepsPerCell = kCell / 4;
  constexpr int kUnrolled = kStepsPerCell < kSteps ? kStepsPerCell : kSteps;
  using Dot = V::template Dot<kBits>;
  const uint8_t* codes = panel.codes;
  const float* scales = panel.scales;
  const float* minus_minima = panel.minus_minima;
  const int8_t* activations = x.codes;
  const float* cell_sums = x.sums;
  const int32_t* cell_offsets = x.offsets;
  const float* group_scales = x.scales;
  V::Floats total[kColumns][kBlocks];
  BITQWEN_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    BITQWEN_UNROLL
    for (int b = 0; b < kBlocks; ++b) total[c][b] = V::load_floats(sums + c * Panel::kRows + b * kRowBlock);
  }
  for (int g = 0; g < groups; ++g) {
    V::Floats t[kColumns][kBlocks];
    unrolled<kGroup / kCell>([&](auto in_group) BITQWEN_INLINE_LAMBDA {
      constexpr bool kFirst = decltype(in_group)::value == 0;
      Dot dot[kColumns][kBlocks];
      BITQWEN_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        dot[c][0].start();
        if constexpr (!kMinimum) dot[c][0].start_scaled_offset(cell_offsets + c, offset);
        BITQWEN_UNROLL
        for (int b = 1; b < kBlocks; ++b) dot[c][b] = dot[c][0];
      }
      for (int part = 0; part < kStepsPerCell / kUnrolled; ++part) {
        unrolled<kUnrolled>([&](auto step) BITQWEN_INLINE_LAMBDA {
          V::Bytes w[kBlocks];
          BITQWEN_UNROLL
          for (int b = 0; b < kBlocks; ++b) w[b] = V::load(codes + 64 * b);
          BITQWEN_UNROLL
          for (int c = 0; c < kColumns; ++c) {
            const V::Quad quad = V::quad(activations + 4 * c);
            BITQWEN_UNROLL
            for (int b = 0; b < kBlocks; ++b) dot[c][b].template add<decltype(step)::value>(w[b], quad);
          }
          codes += 64 * kBlocks;
          activations += 4 * kColumns;
        });
      }
      BITQWEN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        const V::Floats scale = V::load_floats(scales + b * kRowBlock);
        V::Floats minus_minimum;
        if constexpr (kMinimum) minus_minimum = V::load_floats(minus_minima + b * kRowBlock);
        BITQWEN_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          if constexpr (kMinimum) {
            const V::Floats sum = V::broadcast(cell_sums + c);
            t[c][b] = kFirst ? V::mul(minus_minimum, sum) : V::fma(minus_minimum, sum, t[c][b]);
            t[c][b] = V::fma(dot[c][b].value(), scale, t[c][b]);
          } else {
            t[c][b] = kFirst ? V::mul(dot[c][b].value(), scale) : V::fma(dot[c][b].value(), scale, t[c][b]);
          }
        }
      }
      scales += Panel::kRows;
      minus_minima += Panel::kRows;
      cell_sums += kColumns;
      cell_offsets += kColumns;
    });
    BITQWEN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const V::Floats scale = V::broadcast(group_scales + c);
      BITQWEN_UNROLL
      for (int b = 0; b < kBlocks; ++b) total[c][b] = V::fma(t[c][b], scale, total[c][b]);
    }
    group_scales += kColumns;
  }
  BITQWEN_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    BITQWEN_UNROLL
    for (int b = 0; b < kBlocks; ++b) V::store(sums + c * Panel::kRows + b * kRowBlock, total[c][b]);
  }
}

/// A batch of columns: panels of rows are unpacked once for all of them.
template <Format kFormat>
void multiply_batch(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y, int64_t ldy,
                    int64_t row_begin, int64_t row_end) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kUnits = kPanelColumns / kInfo.unit;
  constexpr PanelShape kShape = panel_shape<kFormat>();
  Panel panel;
  alignas(64) float sums[kBatchColumns * Panel::kRows];
  static_assert(kBatchColumns % V::kTileColumns == 0);
  for (int first = 0; first < x.columns; first += kBatchColumns) {
    const int last = x.columns - first < kBatchColumns ? x.columns : first + kBatchColumns;
    for (int64_t row = row_begin; row < row_end; row += Panel::kRows) {
      const int64_t blocks = (row_end - row + kRowBlock - 1) / kRowBlock;
      for (int i = 0; i < (last - first) * Panel::kRows; ++i) sums[i] = 0.0f;
      for (int64_t unit = 0; unit < w.units; unit += kUnits) {
        const int units = w.units - unit < kUnits ? static_cast<int>(w.units - unit) : kUnits;
        for (int b = 0; b < V::kPanelBlocks; ++b) {
          // Past the last row block the panel repeats it: the results are not stored.
          const int64_t block = row / kRowBlock + (b < blocks ? b : blocks - 1);
          unpack_block<kFormat>(w.block(block) + unit * kInfo.unit_bytes(), units, b, panel);
        }
        const int groups = units * (kInfo.unit / kInfo.group);
        for (int tile = first; tile < last; tile += V::kTileColumns) {
          const int n = x.tile_size(tile);
          const TileView view = tile_view<kFormat>(x, tile, n, unit * kInfo.unit);
          float* to = sums + (tile - first) * Panel::kRows;
          unrolled<V::kTileColumns>([&](auto index) {
            constexpr int kColumns = decltype(index)::value + 1;
            if (n == kColumns) {
              multiply_panel<kShape.cell, kShape.group, kShape.minimum, kShape.bits, kColumns>(
                  panel, view, kInfo.offset, groups, to);
            }
          });
        }
      }
      for (int c = first; c < last; ++c) {
        for (int b = 0; b < V::kPanelBlocks && b < blocks; ++b) {
          const int64_t at = row + b * kRowBlock;
          store_rows(V::load_floats(sums + (c - first) * Panel::kRows + b * kRowBlock), y + c * ldy + at,
                     row_end - at);
        }
      }
    }
  }
}

template <Format kFormat>
void multiply_codes(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y, int64_t ldy,
                    int64_t row_begin, int64_t row_end) {
  if (x.columns > V::kFewColumns) {
    multiply_batch<kFormat>(w, x, y, ldy, row_begin, row_end);
    return;
  }
  for (int tile = 0; tile < x.columns; tile += V::kTileColumns) {
    const int n = x.tile_size(tile);
    unrolled<V::kTileColumns>([&](auto index) {
      constexpr int kColumns = decltype(index)::value + 1;
      if (n == kColumns) multiply_tile<kFormat, kColumns>(w, x, tile, y, ldy, row_begin, row_end);
    });
  }
}

// -------------------------------------------------------------------------------------- float weights

template <Format kFormat>
BITQWEN_INLINE V::Floats column_values(const uint8_t* p) {
  if constexpr (kFormat == Format::kF32) return V::load_floats(reinterpret_cast<const float*>(p));
  if constexpr (kFormat == Format::kF16) return V::from_half(p);
  return V::from_bfloat16(p);
}

template <Format kFormat, int kBlocks, int kColumns>
void multiply_values_tile(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, int tile, float* y,
                          int64_t ldy, int64_t row, int64_t row_end) {
  constexpr int kBytes = format_info(kFormat).unit_bytes();
  const uint8_t* blocks[kBlocks];
  V::Floats sums[kBlocks][kColumns];
  BITQWEN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    blocks[b] = w.block(row / kRowBlock + b);
    BITQWEN_UNROLL
    for (int c = 0; c < kColumns; ++c) sums[b][c] = V::zero();
  }
  const float* values = x.values + tile * x.k;
  for (int64_t k = 0; k < w.cols; ++k, values += kColumns) {
    V::Floats weights[kBlocks];
    BITQWEN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      V::prefetch(blocks[b] + kPrefetchBytes + k * kBytes);
      weights[b] = column_values<kFormat>(blocks[b] + k * kBytes);
    }
    BITQWEN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      const V::Floats value = V::broadcast(values + c);
      BITQWEN_UNROLL
      for (int b = 0; b < kBlocks; ++b) sums[b][c] = V::fma(weights[b], value, sums[b][c]);
    }
  }
  BITQWEN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t at = row + b * kRowBlock;
    BITQWEN_UNROLL
    for (int c = 0; c < kColumns; ++c) store_rows(sums[b][c], y + (tile + c) * ldy + at, row_end - at);
  }
}

template <Format kFormat>
void multiply_values(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y, int64_t ldy,
                     int64_t row_begin, int64_t row_end) {
  int64_t row = row_begin;
  while (row < row_end) {
    const bool full = (row_end - row + kRowBlock - 1) / kRowBlock >= V::kPanelBlocks;
    for (int tile = 0; tile < x.columns; tile += V::kTileColumns) {
      const int n = x.tile_size(tile);
      unrolled<V::kTileColumns>([&](auto index) {
        constexpr int kColumns = decltype(index)::value + 1;
        if (n != kColumns) return;
        if (full) {
          multiply_values_tile<kFormat, V::kPanelBlocks, kColumns>(w, x, tile, y, ldy, row, row_end);
        } else {
          multiply_values_tile<kFormat, 1, kColumns>(w, x, tile, y, ldy, row, row_end);
        }
      });
    }
    row += (full ? V::kPanelBlocks : 1) * kRowBlock;
  }
}

// -------------------------------------------------------------------------------------------- the table

template <Format kFormat>
constexpr KernelTable::Multiply multiply_kernel() {
  if constexpr (format_info(kFormat).is_float()) {
    return multiply_values<kFormat>;
  } else {
    return multiply_codes<kFormat>;
  }
}

template <int... kIndex>
constexpr std::array<KernelTable::Multiply, kFormatCount> multiply_kernels(
    std::integer_sequence<int, kIndex...>) {
  return {multiply_kernel<static_cast<Format>(kIndex)>()...};
}

constexpr KernelTable make_table(Isa isa, KernelTable::Quantize quantize) {
  return {.isa = isa,
          .tile_columns = V::kTileColumns,
          .panel_rows = Panel::kRows,
          .quantize = quantize,
          .multiply = multiply_kernels(std::make_integer_sequence<int, kFormatCount>{})};
}

}  // namespace
}  // namespace bitqwen
