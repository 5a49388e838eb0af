// The specification: every other instruction set gives these bits.
//
// For one output, with cells c in column order inside groups g in column order:
//
//   dot[c] = sum over the cell of (code - offset) * x          exact in int32, exact as float32
//            with a codebook: of the codebook's value * x
//   t      = 0
//   for c in g:   t = fma(-minimum[c], sum_x[c], t)            only where the format has minima
//                 t = fma(dot[c], scale[c], t)
//   y      = fma(t, scale_x[g], y)                             y starts at 0
//
// where scale[c] and minimum[c] are rounded products of two float32 (weights/decode.h), and the first
// fma of a group, onto 0, is a rounded product. Float formats: y = fma(w[k], x[k], y) for k in order.
#include <cmath>
#include <cstring>

#include "kernels/table.h"
#include "weights/decode.h"

namespace bitqwen {
namespace {

void quantize(const float* values, ActivationBatch::Layout& x, int column) {
  const int begin = x.tile_begin(column);
  const int n = x.tile_size(begin);
  const int i = column - begin;
  int8_t* codes = x.codes + begin * x.k + 4 * i;
  const int64_t groups = x.groups();
  const int64_t first = begin * groups + i;  // this column's place in the arrays of one value a group
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t largest = 0;  // of the magnitudes' bits: not-a-number and infinity stand above all others
    for (int j = 0; j < x.group; ++j) {
      const uint32_t bits = std::bit_cast<uint32_t>(values[g * x.group + j]) & 0x7fffffff;
      if (bits > largest) largest = bits;
    }
    const float magnitude = std::bit_cast<float>(largest);
    const bool finite = largest < 0x7f800000;
    const float inverse = finite && magnitude >= kTinyActivation ? 127.0f / magnitude : 0.0f;
    const float scale = !finite           ? std::bit_cast<float>(0x7fc00000)
                        : inverse != 0.0f ? magnitude / 127.0f
                                          : 0.0f;
    int32_t sums[2] = {0, 0};
    for (int j = 0; j < x.group; ++j) {
      const float value = values[g * x.group + j];
      const int code = inverse != 0.0f ? static_cast<int>(std::nearbyint(value * inverse)) : 0;
      const int64_t k = g * x.group + j;
      codes[k / 4 * 4 * n + k % 4] = static_cast<int8_t>(code);
      sums[2 * j / x.group] += code;
    }
    x.scales[first + g * n] = scale;
    x.sums[first + g * n] = static_cast<float>(sums[0] + sums[1]);
    x.offsets[first + g * n] = -(sums[0] + sums[1]);
    if (x.has_halves()) {
      for (int h = 0; h < 2; ++h) {
        const int64_t at = begin * 2 * groups + (2 * g + h) * n + i;
        x.half_sums[at] = static_cast<float>(sums[h]);
        x.half_offsets[at] = -sums[h];
      }
    }
  }
}

// One unit of a row block, opened up.
template <Format kFormat>
struct OpenUnit {
  static constexpr FormatInfo kInfo = format_info(kFormat);
  int16_t codes[kInfo.unit][kRowBlock];  // code - offset, or what the codebook has for it
  CellScale scales[kInfo.cells()][kRowBlock];

  void open(const uint8_t* unit, const CodePoints& points) {
    for (int c = 0; c < kInfo.unit; ++c) {
      for (int r = 0; r < kRowBlock; ++r) {
        codes[c][r] = static_cast<int16_t>(packed_level(kInfo, points, unit, r, c));
      }
    }
    for (int c = 0; c < kInfo.cells(); ++c) {
      for (int r = 0; r < kRowBlock; ++r) scales[c][r] = packed_scale(kInfo, unit, r, c);
    }
  }
};

template <Format kFormat>
void multiply_codes(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y, int64_t ldy,
                    int64_t row_begin, int64_t row_end) {
  constexpr FormatInfo kInfo = format_info(kFormat);
  OpenUnit<kFormat> open;
  for (int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(row_end - row < kRowBlock ? row_end - row : kRowBlock);
    for (int c = 0; c < x.columns; ++c) {
      for (int r = 0; r < rows; ++r) y[c * ldy + row + r] = 0.0f;
    }
    for (int64_t u = 0; u < w.units; ++u) {
      open.open(w.unit(row / kRowBlock, u), w.points);
      for (int c = 0; c < x.columns; ++c) {
        const int begin = x.tile_begin(c);
        const int n = x.tile_size(begin);
        const int8_t* codes = x.codes + begin * x.k + 4 * (c - begin);
        const bool halves = kInfo.cell < kInfo.group;
        const float* sums = halves ? x.half_sums : x.sums;
        const int64_t sums_begin = begin * (x.k / kInfo.cell) + (c - begin);
        for (int g = 0; g < kInfo.unit / kInfo.group; ++g) {
          float t[kRowBlock] = {};
          for (int i = 0; i < kInfo.cells_per_group(); ++i) {
            const int cell = g * kInfo.cells_per_group() + i;
            int32_t dot[kRowBlock] = {};
            for (int j = 0; j < kInfo.cell; ++j) {
              const int in_unit = cell * kInfo.cell + j;
              const int64_t k = u * kInfo.unit + in_unit;
              const int32_t activation = codes[k / 4 * 4 * n + k % 4];
              for (int r = 0; r < kRowBlock; ++r) dot[r] += open.codes[in_unit][r] * activation;
            }
            const float sum = sums[sums_begin + (u * kInfo.cells() + cell) * n];
            for (int r = 0; r < rows; ++r) {
              const CellScale& scale = open.scales[cell][r];
              if (kInfo.has_minimum()) t[r] = std::fma(-scale.minimum, sum, t[r]);
              t[r] = std::fma(static_cast<float>(dot[r]), scale.scale, t[r]);
            }
          }
          const int64_t group = u * (kInfo.unit / kInfo.group) + g;
          const float scale = x.scales[begin * x.groups() + group * n + (c - begin)];
          float* out = y + c * ldy + row;
          for (int r = 0; r < rows; ++r) out[r] = std::fma(t[r], scale, out[r]);
        }
      }
    }
  }
}

template <Format kFormat>
void multiply_values(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y, int64_t ldy,
                     int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row += kRowBlock) {
    const int rows = static_cast<int>(row_end - row < kRowBlock ? row_end - row : kRowBlock);
    for (int c = 0; c < x.columns; ++c) {
      const int begin = x.tile_begin(c);
      const int n = x.tile_size(begin);
      const float* values = x.values + begin * x.k + (c - begin);
      float sum[kRowBlock] = {};
      for (int64_t k = 0; k < w.cols; ++k) {
        const uint8_t* column = w.unit(row / kRowBlock, k);
        for (int r = 0; r < rows; ++r)
          sum[r] = std::fma(packed_float(kFormat, column, r, 0), values[k * n], sum[r]);
      }
      for (int r = 0; r < rows; ++r) y[c * ldy + row + r] = sum[r];
    }
  }
}

template <Format kFormat>
constexpr KernelTable::Multiply pick() {
  if constexpr (format_info(kFormat).is_float()) {
    return multiply_values<kFormat>;
  } else {
    return multiply_codes<kFormat>;
  }
}

constexpr KernelTable kTable = {
    .isa = Isa::kScalar,
    .tile_columns = 4,
    .quantize = quantize,
    .multiply = {pick<Format::kF32>(), pick<Format::kF16>(), pick<Format::kBF16>(), pick<Format::kQ8_0>(),
                 pick<Format::kQ4_0>(), pick<Format::kQ4_1>(), pick<Format::kQ5_0>(), pick<Format::kQ5_1>(),
                 pick<Format::kQ2_K>(), pick<Format::kQ3_K>(), pick<Format::kQ4_K>(), pick<Format::kQ5_K>(),
                 pick<Format::kQ6_K>(), pick<Format::kQ2_0>(), pick<Format::kTernary>(),
                 pick<Format::kTernary5>(), pick<Format::kV2>(), pick<Format::kV2_5>(), pick<Format::kV3>()},
};

}  // namespace

const KernelTable& scalar_kernels() { return kTable; }

}  // namespace bitqwen
