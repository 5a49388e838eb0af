// The matrix products, written once over the registers that each instruction set's file names in
// BITQWEN_VECTORS: `V`, with V::Lanes as kernels/simd_rows.h wants them. All names are local to that
// file: nothing compiled with an instruction set's flags may be shared with code for every CPU.
//
// One kernel serves decode and prefill. It reads packed weights once for a tile of up to
// V::kTileColumns columns, opening the codes in registers; with enough columns the multiplications hide
// the opening, so that unpacking panels of bytes beforehand gains nothing.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/activations.h"
#include "kernels/simd_inline.h"
#include "kernels/simd_quantize.h"
#include "kernels/table.h"
#include "weights/layout.h"
#include BITQWEN_VECTORS

namespace bitqwen {
namespace {

constexpr int kSteps = kChunk / 4;  // of one chunk; a step is 4 columns
// Ahead in the one stream that a row block is. On the machines tried (Zen 4), one stream with this
// distance reads at the memory's speed; several streams side by side do worse.
constexpr int kPrefetchBytes = 4096;

template <int kColumns>
using TileRows = Rows<typename V::Lanes, V::registers(kColumns)>;
using BlockRows = Rows<typename V::Lanes, kRowBlock / V::Lanes::kRows>;

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

/// The codes of step kStep of a chunk (4 columns of R's rows), at bit 0 or in place.
template <class R, Format kFormat, int kStep, bool kInPlace>
BITQWEN_INLINE typename R::Bytes step_codes(const uint8_t* chunk) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kLowPerVector = 8 / kInfo.low_bits;
  constexpr int kPlace = kStep % kLowPerVector * kInfo.low_bits;
  const typename R::Bytes low = R::load(chunk + 64 * (kStep / kLowPerVector));
  if constexpr (kInPlace) {
    return R::template field_in_place<kInfo.low_bits, kPlace>(low);
  } else if constexpr (kInfo.high_bits == 0) {
    return R::template field<kInfo.low_bits, kPlace>(low);
  } else {
    constexpr int kHighPerVector = 8 / kInfo.high_bits;
    return R::template with_field<kInfo.high_bits, kStep % kHighPerVector * kInfo.high_bits, kInfo.low_bits>(
        R::template field<kInfo.low_bits, kPlace>(low),
        R::load(chunk + kInfo.low_bytes() + 64 * (kStep / kHighPerVector)));
  }
}

/// A unit's scales for R's rows, the first of which is `row`; sub-scales of 6 and 4 bits are opened for
/// all cells at once.
template <class R, Format kFormat>
struct UnitScales {
  static constexpr FormatInfo kInfo = format_info(kFormat);
  static constexpr bool kOpened = kInfo.scale == ScaleKind::k6Bit || kInfo.scale == ScaleKind::k6BitMin ||
                                  kInfo.scale == ScaleKind::k4BitMin;
  using B = BlockRows;
  using Floats = typename R::Floats;
  const uint8_t* unit;
  int row;
  Floats d;
  Floats minus_dmin;
  alignas(64) uint8_t scales[kOpened ? 16 * kInfo.cells() : 1];
  alignas(64) uint8_t minima[kOpened ? 16 * kInfo.cells() : 1];

  BITQWEN_INLINE UnitScales(const uint8_t* from, int first_row)
      : unit(from), row(first_row), d(R::from_half(from + 2 * first_row)) {
    if constexpr (kInfo.has_minimum()) minus_dmin = R::from_half(from + 32 + 2 * row);
    if constexpr (kInfo.scale == ScaleKind::k6BitMin) {
      minus_dmin = R::negate(minus_dmin);
      const auto a = B::load(from + 64), b = B::load(from + 128), c = B::load(from + 192);
      B::store(scales, B::template field<6, 0>(a));
      B::store(minima, B::template field<6, 0>(b));
      B::store(scales + 64, B::template with_field<2, 6, 4>(B::template field<4, 0>(c), a));
      B::store(minima + 64, B::template with_field<2, 6, 4>(B::template field<4, 4>(c), b));
    } else if constexpr (kInfo.scale == ScaleKind::k4BitMin) {
      minus_dmin = R::negate(minus_dmin);
      for (int i = 0; i < 4; ++i) {
        const auto both = B::load(from + 64 + 64 * i);
        B::store(scales + 64 * i, B::template field<4, 0>(both));
        B::store(minima + 64 * i, B::template field<4, 4>(both));
      }
    } else if constexpr (kInfo.scale == ScaleKind::k6Bit) {
      const auto a = B::load(from + 32), b = B::load(from + 96), high = B::load(from + 160);
      B::store(scales, B::template with_field<2, 0, 4>(B::template field<4, 0>(a), high));
      B::store(scales + 64, B::template with_field<2, 2, 4>(B::template field<4, 0>(b), high));
      B::store(scales + 128, B::template with_field<2, 4, 4>(B::template field<4, 4>(a), high));
      B::store(scales + 192, B::template with_field<2, 6, 4>(B::template field<4, 4>(b), high));
    }
  }

  BITQWEN_INLINE Floats scale(int cell) const {
    if constexpr (kInfo.scale == ScaleKind::k8Bit) {
      return R::mul(d, R::from_s8(unit + 32 + 16 * cell + row));
    } else if constexpr (kInfo.scale == ScaleKind::k6Bit) {
      return R::mul(d, R::add_constant(R::from_u8(scales + 16 * cell + row), -32.0f));
    } else if constexpr (kOpened) {
      return R::mul(d, R::from_u8(scales + 16 * cell + row));
    } else {
      return d;
    }
  }
  BITQWEN_INLINE Floats minus_minimum(int cell) const {
    if constexpr (kInfo.scale == ScaleKind::kFlatMin) {
      return minus_dmin;  // the file's m is added
    } else {
      return R::mul(minus_dmin, R::from_u8(minima + 16 * cell + row));
    }
  }
};

/// Adds one unit's products to sums[c], for R's rows from `row` on; `x` stands at the unit's first column.
template <class R, Format kFormat, int kColumns>
BITQWEN_INLINE void add_unit(const uint8_t* unit, int row, const TileView& x,
                             typename R::Floats (&sums)[kColumns]) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kChunksPerCell = kInfo.cell > kChunk ? kInfo.cell / kChunk : 1;
  constexpr int kStepsPerCell = kInfo.cell < kChunk ? kInfo.cell / 4 : kSteps;  // within one chunk
  constexpr int kCellsPerGroup = kInfo.cells_per_group();
  constexpr int kPlaces = places<kFormat, kColumns>();
  constexpr int kOffset = kInfo.offset;
  using Floats = typename R::Floats;
  const UnitScales<R, kFormat> scales(unit, row);
  const uint8_t* chunk = unit + kInfo.header_bytes() + 4 * row;
  const int8_t* codes = x.codes;
  for (int g = 0; g < kInfo.unit / kInfo.group; ++g) {
    Floats t[kColumns];
    unrolled<kCellsPerGroup>([&](auto in_group) BITQWEN_INLINE_LAMBDA {
      constexpr int kCell = decltype(in_group)::value;
      const int cell = g * kCellsPerGroup + kCell;
      const int32_t* offsets = x.offsets + cell * kColumns;
      V::Dots<R, kInfo.bits(), kColumns, kPlaces> dots;
      dots.template start<kOffset>(offsets);
      for (int part = 0; part < kChunksPerCell; ++part) {
        if constexpr (kCell == 0) {
          for (int i = 0; i < kInfo.chunk_bytes(); i += 64) V::prefetch(chunk + kPrefetchBytes + i);
        }
        unrolled<kStepsPerCell>([&](auto step) BITQWEN_INLINE_LAMBDA {
          constexpr int kInCell = decltype(step)::value;
          constexpr int kStep = kCell * kStepsPerCell + kInCell;
          const typename R::Bytes w = step_codes<R, kFormat, kStep, (kPlaces > 1)>(chunk);
          dots.template add<kStep % kPlaces, kInCell>(w, codes + 4 * kStep * kColumns);
        });
        if constexpr (kCell == kCellsPerGroup - 1) {
          chunk += kInfo.chunk_bytes();
          codes += kChunk * kColumns;
        }
      }
      const Floats scale = scales.scale(cell);
      Floats minus_minimum;
      if constexpr (kInfo.has_minimum()) minus_minimum = scales.minus_minimum(cell);
      unrolled<kColumns>([&](auto c) BITQWEN_INLINE_LAMBDA {
        const Floats value = dots.template value<decltype(c)::value, kOffset, kInfo.low_bits>(offsets);
        if constexpr (kInfo.has_minimum()) {
          const Floats sum = R::broadcast(x.sums + cell * kColumns + c);
          t[c] = kCell == 0 ? R::mul(minus_minimum, sum) : R::fma(minus_minimum, sum, t[c]);
          t[c] = R::fma(value, scale, t[c]);
        } else {
          t[c] = kCell == 0 ? R::mul(value, scale) : R::fma(value, scale, t[c]);
        }
      });
    });
    unrolled<kColumns>([&](auto c) BITQWEN_INLINE_LAMBDA {
      sums[c] = R::fma(t[c], R::broadcast(x.scales + g * kColumns + c), sums[c]);
    });
  }
}

/// The same for codebook formats: every code becomes the bytes of its point's two coordinates, looked up in
/// a register. What is looked up are points, not products: the products stay exact, several columns share
/// the look-ups, and no tables are made of the activations.
template <class R, Format kFormat, int kColumns>
BITQWEN_INLINE void add_codebook_unit(const uint8_t* unit, int row, const typename R::PointTables& tables,
                                      const TileView& x, typename R::Floats (&sums)[kColumns]) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kHighBits = kInfo.high_bits;
  constexpr int kChains = V::kSumsInPlace && kColumns <= 2 ? 4 : 1;  // one sum after the other would wait
  using Floats = typename R::Floats;
  const uint8_t* low = unit + kInfo.header_bytes() + 4 * row;
  const uint8_t* high = low + kInfo.low_bytes();
  V::Dots<R, 6, kColumns, kChains> dots;
  dots.template start<0>(x.offsets);
  for (int i = 0; i < kInfo.unit_bytes(); i += 64) V::prefetch(unit + kPrefetchBytes + i);
  // What one vector of high bits covers is unrolled, not the unit: gcc needs quadratic time for long blocks.
  constexpr int kFours = kHighBits > 0 ? 8 / kHighBits : 4;
  constexpr int kRoundSteps = 2 * kFours;
  static_assert(kInfo.chunk_codes() / 4 % kFours == 0 && kRoundSteps % kChains == 0);
  const int8_t* codes = x.codes;
  for (int round = 0; round < kInfo.chunk_codes() / 4 / kFours; ++round) {
    unrolled<kFours>([&](auto index) BITQWEN_INLINE_LAMBDA {
      constexpr int kFour = decltype(index)::value;
      typename R::Bytes points[2];
      const typename R::Bytes four = R::load(low + 64 * (kFour / 2));
      R::template points<kHighBits, kFour % 2 * 4, kFour * kHighBits>(
          tables, four, kHighBits > 0 ? R::load(high) : four, points);
      unrolled<2>([&](auto dim) BITQWEN_INLINE_LAMBDA {
        constexpr int kStep = 2 * kFour + decltype(dim)::value;
        // Never step 0: every round goes on from the sums of the one before it.
        dots.template add<kStep % kChains, kRoundSteps + kStep>(points[dim], codes + 4 * kStep * kColumns);
      });
    });
    low += 64 * kFours / 2;
    high += 64;
    codes += 4 * kRoundSteps * kColumns;
  }
  static constexpr float kPointScale = kInfo.point_scale, kPointOffset = kInfo.point_offset;
  const Floats scale = R::from_half(unit + 2 * row);
  unrolled<kColumns>([&](auto c) BITQWEN_INLINE_LAMBDA {
    // All of these are integers below 2^24: nothing is rounded.
    const Floats offset = R::mul(R::broadcast(x.sums + c), R::broadcast(&kPointOffset));
    const Floats dot = dots.template value<decltype(c)::value, 0, 0>(x.offsets);
    const Floats value = R::fma(dot, R::broadcast(&kPointScale), offset);
    sums[c] = R::fma(R::mul(value, scale), R::broadcast(x.scales + c), sums[c]);
  });
}

/// The same for bytes of five trits.
template <class R, Format kFormat, int kColumns>
BITQWEN_INLINE void add_trit_unit(const uint8_t* unit, int row, const typename R::TritTables& tables,
                                  const TileView& x, typename R::Floats (&sums)[kColumns]) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  constexpr int kCellSteps = kInfo.cell / 4;
  constexpr bool kInPlace = V::kTritsInPlace && V::kSumsInPlace && kColumns <= 3;
  constexpr int kPlaces = kInPlace ? 4 : 1;
  using Floats = typename R::Floats;
  const uint8_t* bytes = unit + kInfo.header_bytes() + 4 * row;
  const int8_t* codes = x.codes;
  const Floats scale = R::from_half(unit + 2 * row);
  ColumnDots<R, 2, kColumns, kPlaces> dots;
  typename R::Trits trits;
  const auto open = [&]() BITQWEN_INLINE_LAMBDA {
    trits = R::open_trits(tables, bytes);
    bytes += 64;
  };
  const auto add_digit = [&](auto index) BITQWEN_INLINE_LAMBDA {
    constexpr int kDigit = decltype(index)::value;
    constexpr int kPlace = kInPlace && kDigit > 0 ? kDigit - 1 : 0;
    dots.template add<kPlace, kDigit>(R::template trit<kDigit, kInPlace>(trits), codes);
    codes += 4 * kColumns;
  };
  for (int i = 0; i < kInfo.unit_bytes(); i += 64) V::prefetch(unit + kPrefetchBytes + i);
  unrolled<kInfo.cells()>([&](auto cell) BITQWEN_INLINE_LAMBDA {
    // Cells end within a vector: the rest of one, whole ones, the beginning of one. A loop, because gcc needs
    // quadratic time for long blocks.
    constexpr int kFirstDigit = decltype(cell)::value * kCellSteps % kInfo.trits;
    constexpr int kRest = (kInfo.trits - kFirstDigit) % kInfo.trits;
    constexpr int kWhole = (kCellSteps - kRest) / kInfo.trits;
    constexpr int kLast = (kCellSteps - kRest) % kInfo.trits;
    const int at = cell * kColumns;  // of the cell's values, one a column
    dots.template start<kInfo.offset>(x.offsets + at);
    unrolled<kRest>([&](auto i) BITQWEN_INLINE_LAMBDA {
      add_digit(std::integral_constant<int, kFirstDigit + decltype(i)::value>{});
    });
    for (int vector = 0; vector < kWhole; ++vector) {
      open();
      unrolled<kInfo.trits>(add_digit);
    }
    if constexpr (kLast > 0) open();
    unrolled<kLast>(add_digit);
    unrolled<kColumns>([&](auto c) BITQWEN_INLINE_LAMBDA {
      const Floats value = dots.template value<decltype(c)::value, kInfo.offset, 2>(x.offsets + at);
      sums[c] = R::fma(R::mul(value, scale), R::broadcast(x.scales + at + c), sums[c]);
    });
  });
}

/// Stores R's rows at y, of which only `rows` are wanted.
template <class R>
BITQWEN_INLINE void store_rows(const typename R::Floats& sums, float* y, int64_t rows) {
  if (rows >= R::kRows) {
    R::store_floats(y, sums);
    return;
  }
  alignas(64) float all[R::kRows];
  R::store_floats(all, sums);
  for (int r = 0; r < rows; ++r) y[r] = all[r];
}

/// A group of row blocks, stripe after stripe: add(unit, part, from, to, sums) adds the units [from, to) of
/// R's rows of a block, of which `unit` is the first and `part` the first row.
template <class R, int kColumns, class Add>
BITQWEN_INLINE void multiply_groups(const PackedMatrix::Layout& w, int tile, float* y, int64_t ldy,
                                    int64_t row_begin, int64_t row_end, Add&& add) {
  constexpr int kParts = kRowBlock / R::kRows;
  const int64_t stripe = w.stripe_units(), last = (row_end + kRowBlock - 1) / kRowBlock;
  typename R::Floats sums[kGroupBlocks][kParts][kColumns];
  for (int64_t begin = row_begin / kRowBlock, end; begin < last; begin = end) {
    end = begin / kGroupBlocks * kGroupBlocks + kGroupBlocks;
    if (end > last) end = last;
    for (int64_t from = 0; from < w.units; from += stripe) {
      const int64_t to = from + stripe < w.units ? from + stripe : w.units;
      for (int64_t block = begin; block < end; ++block) {
        const uint8_t* unit = w.unit(block, from);
        for (int p = 0; p < kParts; ++p) {
          typename R::Floats now[kColumns];
          for (int c = 0; c < kColumns; ++c) now[c] = from == 0 ? R::zero() : sums[block - begin][p][c];
          add(unit, p * R::kRows, from, to, now);
          for (int c = 0; c < kColumns; ++c) sums[block - begin][p][c] = now[c];
        }
      }
    }
    for (int64_t block = begin; block < end; ++block) {
      for (int p = 0; p < kParts; ++p) {
        const int64_t row = block * kRowBlock + p * R::kRows;
        for (int c = 0; c < kColumns; ++c)
          store_rows<R>(sums[block - begin][p][c], y + (tile + c) * ldy + row, row_end - row);
      }
    }
  }
}

template <Format kFormat, int kColumns>
void multiply_tile(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, int tile, float* y,
                   int64_t ldy, int64_t row_begin, int64_t row_end) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  using R = TileRows<kColumns>;
  [[maybe_unused]] typename R::PointTables tables;
  if constexpr (kInfo.has_codebook()) tables = R::template load_points<kInfo.high_bits>(w.points);
  [[maybe_unused]] typename R::TritTables trit_tables;
  if constexpr (kInfo.has_trits()) trit_tables = R::load_trits();
  multiply_groups<R, kColumns>(
      w, tile, y, ldy, row_begin, row_end,
      [&](const uint8_t* unit, int part, int64_t from, int64_t to, typename R::Floats(&sums)[kColumns])
          BITQWEN_INLINE_LAMBDA {
            for (int64_t u = from; u < to; ++u, unit += kInfo.unit_bytes()) {
              const TileView view = tile_view<kFormat>(x, tile, kColumns, u * kInfo.unit);
              if constexpr (kInfo.has_codebook()) {
                add_codebook_unit<R, kFormat, kColumns>(unit, part, tables, view, sums);
              } else if constexpr (kInfo.has_trits()) {
                add_trit_unit<R, kFormat, kColumns>(unit, part, trit_tables, view, sums);
              } else {
                add_unit<R, kFormat, kColumns>(unit, part, view, sums);
              }
            }
          });
}

// -------------------------------------------------------------------------------------- float weights

template <class R, Format kFormat>
BITQWEN_INLINE typename R::Floats column_values(const uint8_t* p) {
  if constexpr (kFormat == Format::kF32) {
    return R::load_floats(reinterpret_cast<const float*>(p));
  } else if constexpr (kFormat == Format::kF16) {
    return R::from_half(p);
  } else {
    return R::from_bfloat16(p);
  }
}

template <Format kFormat, int kColumns>
void multiply_values_tile(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, int tile, float* y,
                          int64_t ldy, int64_t row_begin, int64_t row_end) {
  constexpr int kColumnBytes = format_info(kFormat).unit_bytes();
  using R = TileRows<kColumns>;
  multiply_groups<R, kColumns>(
      w, tile, y, ldy, row_begin, row_end,
      [&](const uint8_t* unit, int part, int64_t from, int64_t to, typename R::Floats(&sums)[kColumns])
          BITQWEN_INLINE_LAMBDA {
            const uint8_t* weights = unit + part * kColumnBytes / kRowBlock;
            const float* values = x.values + tile * x.k + from * kColumns;
            for (int64_t k = from; k < to; ++k, weights += kColumnBytes, values += kColumns) {
              V::prefetch(weights + kPrefetchBytes);
              const typename R::Floats now = column_values<R, kFormat>(weights);
              unrolled<kColumns>([&](auto c) BITQWEN_INLINE_LAMBDA {
                sums[c] = R::fma(now, R::broadcast(values + c), sums[c]);
              });
            }
          });
}

// -------------------------------------------------------------------------------------------- the table

/// Tile by tile, so that a tile's activations stay in the cache while the rows pass.
template <Format kFormat>
void multiply_format(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y, int64_t ldy,
                     int64_t row_begin, int64_t row_end) {
  for (int tile = 0; tile < x.columns; tile += x.tile_columns) {
    const int n = x.tile_size(tile);
    unrolled<V::kTileColumns>([&](auto index) {
      constexpr int kColumns = decltype(index)::value + 1;
      if (n != kColumns) return;
      if constexpr (format_info(kFormat).is_float()) {
        multiply_values_tile<kFormat, kColumns>(w, x, tile, y, ldy, row_begin, row_end);
      } else {
        multiply_tile<kFormat, kColumns>(w, x, tile, y, ldy, row_begin, row_end);
      }
    });
  }
}

template <int... kIndex>
constexpr std::array<KernelTable::Multiply, kFormatCount> multiply_kernels(
    std::integer_sequence<int, kIndex...>) {
  return {multiply_format<static_cast<Format>(kIndex)>...};
}

constexpr KernelTable make_table(Isa isa) {
  return {.isa = isa,
          .tile_columns = V::kTileColumns,
          .quantize = quantize_activations,
          .multiply = multiply_kernels(std::make_integer_sequence<int, kFormatCount>{})};
}

}  // namespace
}  // namespace bitqwen
