// A register's lanes are as many rows of the block, so that rotating, choosing codes and packing them need no
// shuffle. Written once; no contraction, so that each instruction set makes the same bytes.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/coarse_block.h"
#include "kernels/coarse_rows.h"
#include "kernels/hadamard.h"
#include "vectors.h"
#include "weights/decode.h"

namespace bitqwen {
namespace {

inline WideInts load_lanes(const uint8_t* p) {
  WideInts v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// Weights of kWidth rows from `first` on, one column after another.
struct Rows {
  const FormatInfo& f;
  const CodePoints& points;
  int first;

  template <class Value>
  Wide lanes(Value value) const {
    float x[kWidth];
    for (int lane = 0; lane < kWidth; ++lane) x[lane] = value(first + lane);
    return load_wide(x);
  }

  /// The unit's weights. out: [f.unit]
  template <int kLow, int kHigh>
  void planes(const uint8_t* unit, Wide* out) const {
    const float offset = static_cast<float>(f.offset);
    for (int cell = 0; cell < f.cells(); ++cell) {
      CellScale scales[kWidth];
      for (int lane = 0; lane < kWidth; ++lane) scales[lane] = packed_scale(f, unit, first + lane, cell);
      const Wide scale = lanes([&](int row) { return scales[row - first].scale; });
      const Wide minimum = lanes([&](int row) { return scales[row - first].minimum; });
      for (int i = 0; i < f.cell; i += 16) {
        const int column = cell * f.cell + i;
        const uint8_t* chunk = unit + f.header_bytes() + column / kChunk * f.chunk_bytes() + first * 4;
        for (int k = 0; k < 16; ++k) {
          const int at = column % kChunk + k;
          const auto plane = [&](const uint8_t* p, int bits) {
            const int per_vector = 32 / bits;
            const int shift = 8 * (at % 4) + bits * (at % per_vector / 4);
            return load_lanes(p + at / per_vector * 64) >> shift & ((1 << bits) - 1);
          };
          WideInts code = plane(chunk, kLow);
          if constexpr (kHigh > 0) code |= plane(chunk + f.low_bytes(), kHigh) << kLow;
          out[column + k] = (__builtin_convertvector(code, Wide) - offset) * scale - minimum;
        }
      }
    }
  }

  void decode(const uint8_t* unit, Wide* out) const {
    if (f.is_float()) {
      *out = lanes([&](int row) { return packed_float(f.format, unit, row, 0); });
    } else if (f.has_codebook() || f.has_trits()) {
      for (int i = 0; i < f.unit; ++i) {
        out[i] = lanes([&](int row) {
          return packed_scale(f, unit, row, i / f.cell).scale *
                 static_cast<float>(packed_level(f, points, unit, row, i));
        });
      }
    } else {
      switch (f.low_bits * 10 + f.high_bits) {
        case 20: return planes<2, 0>(unit, out);
        case 21: return planes<2, 1>(unit, out);
        case 40: return planes<4, 0>(unit, out);
        case 41: return planes<4, 1>(unit, out);
        case 42: return planes<4, 2>(unit, out);
        default: return planes<8, 0>(unit, out);
      }
    }
  }
};

inline Wide magnitude(Wide x) { return reinterpret_cast<Wide>(reinterpret_cast<WideInts>(x) & 0x7fffffff); }

/// Codes of 128 columns, whose scale is to be multiplied by `factor`. unit: the V2 unit at the first of these
/// rows. Returns the squared norm of the error.
inline Wide encode(const Wide* x, float factor, uint8_t* scales, uint8_t* codes) {
  Wide squares = {};
  for (int i = 0; i < kCoarseBlock; ++i) squares += x[i] * x[i];
  // The bound between the levels of a normal distribution, in deviations: compared as squares.
  const Wide bound = squares * (0.9816f * 0.9816f / kCoarseBlock);
  Wide products = {};
  WideInts outer_count = {};
  for (int vector = 0; vector < kCoarseBlock / 16; ++vector) {
    WideInts word = {};
    for (int k = 0; k < 16; ++k) {  // byte j: columns j, 4 + j, 8 + j, 12 + j
      const Wide v = x[16 * vector + k];
      const WideInts outer = v * v > bound;  // -1 or 0
      products += magnitude(v) * (outer ? splat_wide(kOuterLevel) : splat_wide(kInnerLevel));
      outer_count -= outer;
      // -30, -9, 9, 30 are 0 to 3: 2 - negative, then one further out.
      const WideInts negative = reinterpret_cast<WideInts>(v) >> 31;
      const WideInts code = (2 - outer) ^ (negative & 3);  // 2 or 3; mirrored 1 or 0
      word |= code << (8 * (k % 4) + 2 * (k / 4));
    }
    std::memcpy(codes + vector * 64, &word, sizeof word);
  }
  const Wide levels = __builtin_convertvector(outer_count, Wide) *
                          static_cast<float>(kOuterLevel * kOuterLevel - kInnerLevel * kInnerLevel) +
                      static_cast<float>(kCoarseBlock * kInnerLevel * kInnerLevel);
  float scale[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) {
    const float exact = products[lane] > 0.0f ? squares[lane] / products[lane] * factor : 0.0f;
    uint16_t half = float_to_half(exact);
    if (half > 0x7bff) half = 0x7bff;  // the largest number: the error tells how much is lost
    std::memcpy(scales + 2 * lane, &half, sizeof half);
    scale[lane] = half_to_float(half) / factor;
  }
  const Wide s = load_wide(scale);
  return s * s * levels - 2.0f * s * products + squares;
}

inline void coarse_block(const PackedMatrix::Layout& w, int64_t block, const float* signs, int mix,
                         PackedMatrix::Layout& out, float* spreads) {
  alignas(64) Wide x[kMostMixed];
  const FormatInfo& f = w.info();
  const int header = out.info().header_bytes();
  // x is sqrt(mix) times what an orthogonal transform would leave.
  const float factor = 1.0f / std::sqrt(static_cast<float>(mix));
  for (int first = 0; first < 16; first += kWidth) {
    const Rows rows{f, w.points, first};
    Wide worst = {};
    for (int64_t begin = 0; begin < w.cols; begin += mix) {
      for (int i = 0; i < mix; i += f.unit) rows.decode(w.unit(block, (begin + i) / f.unit), x + i);
      for (int i = 0; i < mix; ++i) x[i] *= signs[begin + i];
      hadamard(x, mix);
      Wide error = {};
      for (int i = 0; i < mix; i += kCoarseBlock) {
        uint8_t* unit = out.buffer.data() + out.unit_offset(block, (begin + i) / kCoarseBlock);
        error += encode(x + i, factor, unit + 2 * first, unit + header + 4 * first);
      }
      worst = maximum(error, worst);
    }
    // The error's variance is the sum over mixed columns of |error|^2 |state|^2 / mix.
    for (int lane = 0; lane < kWidth; ++lane) {
      spreads[first + lane] = std::sqrt(worst[lane]) / static_cast<float>(mix);
    }
  }
}

}  // namespace
}  // namespace bitqwen
