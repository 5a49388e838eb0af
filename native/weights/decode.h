// The scalar meaning of the packed formats: one code, one scale at a time. Embedding look-ups and the
// scalar kernels read through these; the fast kernels are tested against them.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "weights/layout.h"

namespace bitqwen {

/// The code of `column` (within the unit) of `row` (within the row block); for codebook formats of pair
/// `column`.
[[gnu::always_inline]] constexpr int packed_code(const FormatInfo& f, const uint8_t* unit, int row,
                                                 int column) {
  const uint8_t* chunk = unit + f.header_bytes() + column / f.chunk_codes() * f.chunk_bytes();
  const int in_chunk = column % f.chunk_codes();
  if (f.has_trits()) {
    const int step = in_chunk / 4;
    uint8_t rest = chunk[step / f.trits * 64 + row * 4 + in_chunk % 4];
    for (int digit = step % f.trits; digit > 0; --digit) rest = static_cast<uint8_t>(rest * 3);
    return rest * 3 >> 8;
  }
  const auto plane = [&](const uint8_t* p, int bits) {
    const int per_vector = 32 / bits;  // columns
    const uint8_t byte = p[in_chunk / per_vector * 64 + row * 4 + in_chunk % 4];
    return byte >> (in_chunk % per_vector / 4 * bits) & ((1 << bits) - 1);
  };
  int code = plane(chunk, f.low_bits);
  if (f.high_bits) code |= plane(chunk + f.low_bytes(), f.high_bits) << f.low_bits;
  return code;
}

/// weight / scale of `column` (within the unit) of `row`, an integer: what dot products are made of.
BITQWEN_ALWAYS_INLINE int packed_level(const FormatInfo& f, const CodePoints& points, const uint8_t* unit,
                                       int row, int column) {
  if (!f.has_codebook()) return packed_code(f, unit, row, column) - f.offset;
  const int code = packed_code(f, unit, row, column / 8 * 4 + column % 4);
  return f.point_scale * points.dims[column / 4 % 2][code] + f.point_offset;
}

struct CellScale {
  float scale;
  float minimum;  // subtracted from scale * code; 0 where the format has none
};

/// The scale of cell `cell` (within the unit) of `row`.
BITQWEN_ALWAYS_INLINE CellScale packed_scale(const FormatInfo& f, const uint8_t* unit, int row, int cell) {
  const float d = half_to_float(load_u16(unit + 2 * row));
  const uint8_t* after_d = unit + 32 + row;
  const uint8_t* after_dmin = unit + 64 + row;
  const auto byte = [](const uint8_t* field, int i) { return static_cast<int>(field[16 * i]); };
  switch (f.scale) {
    case ScaleKind::kFloat: break;
    case ScaleKind::kFlat: return {d, 0.0f};
    case ScaleKind::kFlatMin: return {d, -half_to_float(load_u16(unit + 32 + 2 * row))};
    case ScaleKind::k8Bit: return {d * static_cast<float>(static_cast<int8_t>(byte(after_d, cell))), 0.0f};
    case ScaleKind::k6Bit: {
      const int low = byte(after_d, cell % 8) >> (cell / 8 * 4) & 15;
      const int high = byte(after_d, 8 + cell % 4) >> (cell / 4 * 2) & 3;
      return {d * static_cast<float>((low | high << 4) - 32), 0.0f};
    }
    case ScaleKind::k6BitMin: {
      const float dmin = half_to_float(load_u16(unit + 32 + 2 * row));
      int s, m;
      if (cell < 4) {
        s = byte(after_dmin, cell) & 63;
        m = byte(after_dmin, cell + 4) & 63;
      } else {
        s = (byte(after_dmin, cell + 4) & 15) | byte(after_dmin, cell - 4) >> 6 << 4;
        m = byte(after_dmin, cell + 4) >> 4 | byte(after_dmin, cell) >> 6 << 4;
      }
      return {d * static_cast<float>(s), dmin * static_cast<float>(m)};
    }
    case ScaleKind::k4BitMin: {
      const float dmin = half_to_float(load_u16(unit + 32 + 2 * row));
      const int both = byte(after_dmin, cell);
      return {d * static_cast<float>(both & 15), dmin * static_cast<float>(both >> 4)};
    }
  }
  return {0.0f, 0.0f};
}

/// One value of a float format: `column` of the row block's stream.
BITQWEN_ALWAYS_INLINE float packed_float(Format format, const uint8_t* block, int row, int64_t column) {
  if (format == Format::kF32) {
    float value;
    std::memcpy(&value, block + (column * 16 + row) * 4, sizeof value);
    return value;
  }
  const uint16_t bits = load_u16(block + (column * 16 + row) * 2);
  return format == Format::kF16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

}  // namespace bitqwen
