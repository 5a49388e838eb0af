// The packed formats: how the weights of 16 rows lie in memory, for every instruction set alike.
//
// A row block is kRowBlock rows of units. kGroupBlocks row blocks lie together, in stripes of kStripe
// columns: the first stripe of the first row block, of the second and so on, then the second stripe of each.
// A kernel that takes a group of row blocks at a time reads one sequential stream, as the prefetchers want
// it, and still has a stripe's activations in the first-level cache. A unit is `unit` columns of those
// rows (one block of the tensor type) and takes the same number of bytes as it did in the file:
//
//   header   scales (and minima), each field as 16 values, one a row:
//              kFlat      d f16
//              kFlatMin   d f16, m f16                           value = d * code + m
//              k8Bit      d f16, 16 x signed sub-scale           scale = d * sub-scale
//              k6Bit      d f16, 12 bytes of 6-bit sub-scales    scale = d * (sub-scale - 32)
//              k6BitMin   d f16, dmin f16, 12 bytes              scale = d * s, minimum = dmin * m
//              k4BitMin   d f16, dmin f16, 16 bytes              low nibble s, high nibble m
//   chunks   one for each 32 columns: the planes of `low_bits`, then those of `high_bits`
//
// Codebook formats hold one code for each pair of columns, and one chunk for the whole unit. Pair
// 4 * g + j of a unit is its columns 8 * g + j and 8 * g + 4 + j: looking up the first coordinates of four
// pairs gives four columns that follow each other, and so do the second ones.
//
// kTernary5 has one chunk of bytes with five trits (codes 0, 1 and 2) each, 64-byte vectors as in a plane:
// digit n of byte j of vector v is the code of column 4 * (5 * v + n) + j. A byte is the fraction of 256 that
// its number in base 3 is of 243, rounded up, the first digit most significant: multiplied by 3, digit after
// digit is carried out of its top.
//
// A plane of b bits is a sequence of 64-byte vectors; a vector holds 16 rows x 4 bytes, so a 32-bit
// lane belongs to one row. Bits [b*i, b*i + b) of byte j are the code of column 4*i + j of the 32/b
// columns that the vector covers. A code is low | high << low_bits.
//
// Float formats have no header: for every column, 16 values, one a row.
#pragma once

#include <array>
#include <cstdint>

namespace bitqwen {

enum class Format : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kQ2_0,
  kTernary,   // TQ1_0 and TQ2_0, two bits a code
  kTernary5,  // the same types, five codes a byte
  kV2,
  kV2_5,
  kV3,
  kCount,
};
constexpr int kFormatCount = static_cast<int>(Format::kCount);

enum class ScaleKind : uint8_t { kFloat, kFlat, kFlatMin, k8Bit, k6Bit, k6BitMin, k4BitMin };

constexpr int kGroupBlocks = 4;
constexpr int kStripe = 2048;  // columns; a multiple of every unit
constexpr int kChunk = 32;     // columns whose code planes lie together

struct FormatInfo {
  Format format;
  ScaleKind scale;
  int low_bits;  // for float formats the bits of a value
  int high_bits;
  int offset;  // weight = scale * (code - offset) [- minimum]
  int cell;    // columns that share one weight scale and one activation scale
  int group;   // columns that share one activation scale; 0: float32 activations
  int unit;    // columns of a unit
  // Codebook formats: weight = scale * (point_scale * point + point_offset), point a byte of the table.
  int point_scale = 0;
  int point_offset = 0;
  int trits = 0;  // in a byte

  constexpr bool has_codebook() const { return point_scale != 0; }
  constexpr bool has_trits() const { return trits != 0; }
  constexpr bool is_mirrored() const { return point_scale == 2; }
  constexpr bool is_float() const { return scale == ScaleKind::kFloat; }
  constexpr bool has_minimum() const {
    return scale == ScaleKind::kFlatMin || scale == ScaleKind::k6BitMin || scale == ScaleKind::k4BitMin;
  }
  constexpr int bits() const { return low_bits + high_bits; }
  constexpr int cells() const { return unit / cell; }  // of a unit
  constexpr int cells_per_group() const { return group / cell; }
  constexpr int header_bytes() const {  // of 16 rows
    switch (scale) {
      case ScaleKind::kFloat: return 0;
      case ScaleKind::kFlat: return 16 * 2;
      case ScaleKind::kFlatMin: return 16 * 4;
      case ScaleKind::k8Bit: return 16 * (2 + 16);
      case ScaleKind::k6Bit: return 16 * (2 + 12);
      case ScaleKind::k6BitMin: return 16 * (4 + 12);
      case ScaleKind::k4BitMin: return 16 * (4 + 16);
    }
    return 0;
  }
  constexpr int chunk() const { return has_codebook() || has_trits() ? unit : kChunk; }  // columns
  constexpr int chunk_codes() const { return has_codebook() ? unit / 2 : chunk(); }
  constexpr int low_bytes() const {  // of a chunk: 16 rows / 8 bits
    return has_trits() ? 64 * ((unit / 4 + trits - 1) / trits) : 2 * chunk_codes() * low_bits;
  }
  constexpr int high_bytes() const { return 2 * chunk_codes() * high_bits; }
  constexpr int chunk_bytes() const { return low_bytes() + high_bytes(); }
  constexpr int unit_bytes() const {
    return is_float() ? 2 * unit * low_bits : header_bytes() + unit / chunk() * chunk_bytes();
  }
};

/// Indexed by Format.
inline constexpr std::array<FormatInfo, kFormatCount> kFormats = {{
    {Format::kF32, ScaleKind::kFloat, 32, 0, 0, 1, 0, 1},
    {Format::kF16, ScaleKind::kFloat, 16, 0, 0, 1, 0, 1},
    {Format::kBF16, ScaleKind::kFloat, 16, 0, 0, 1, 0, 1},
    {Format::kQ8_0, ScaleKind::kFlat, 8, 0, 128, 32, 32, 32},
    {Format::kQ4_0, ScaleKind::kFlat, 4, 0, 8, 32, 32, 32},
    {Format::kQ4_1, ScaleKind::kFlatMin, 4, 0, 0, 32, 32, 32},
    {Format::kQ5_0, ScaleKind::kFlat, 4, 1, 16, 32, 32, 32},
    {Format::kQ5_1, ScaleKind::kFlatMin, 4, 1, 0, 32, 32, 32},
    {Format::kQ2_K, ScaleKind::k4BitMin, 2, 0, 0, 16, 32, 256},
    {Format::kQ3_K, ScaleKind::k6Bit, 2, 1, 4, 16, 32, 256},
    {Format::kQ4_K, ScaleKind::k6BitMin, 4, 0, 0, 32, 32, 256},
    {Format::kQ5_K, ScaleKind::k6BitMin, 4, 1, 0, 32, 32, 256},
    {Format::kQ6_K, ScaleKind::k8Bit, 4, 2, 32, 16, 32, 256},
    {Format::kQ2_0, ScaleKind::kFlat, 2, 0, 1, 64, 64, 64},
    {Format::kTernary, ScaleKind::kFlat, 2, 0, 1, 128, 128, 256},
    {Format::kTernary5, ScaleKind::kFlat, 2, 0, 1, 128, 128, 256, 0, 0, 5},
    {Format::kV2, ScaleKind::kFlat, 4, 0, 0, 128, 128, 128, 1, -32},
    {Format::kV2_5, ScaleKind::kFlat, 4, 1, 0, 128, 128, 128, 2, -63},
    {Format::kV3, ScaleKind::kFlat, 4, 2, 0, 128, 128, 128, 2, -63},
}};

constexpr const FormatInfo& format_info(Format format) { return kFormats[static_cast<int>(format)]; }

}  // namespace bitqwen
