// K-quants: blocks of 256 values in sub-blocks whose scales are small integers times the block's own factor.
// Included by row_encoder_impl.h alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "quant/fits.h"
#include "quant/row_encoder.h"

namespace bitqwen {
namespace {

constexpr int kSuper = 256;

// -------------------------------------------------- value = d * scale * code: signed integers as scales

/// Q3_K and Q6_K: sub-blocks of 16, codes -kLevels to kLevels - 1, scales -kScales to kScales - 1.
template <int kLevels, int kScales>
struct SymmetricBlock {
  float d = 0;  // representable in float16
  int scales[16] = {};
  int32_t codes[kSuper];
};

template <int kLevels, int kScales>
SymmetricBlock<kLevels, kScales> fit_symmetric_block(const float* x, const float* w, float least_of_rms,
                                                     float ratio) {
  SymmetricBlock<kLevels, kScales> block;
  float fits[16], extreme = 0.0f;
  for (int s = 0; s < 16; ++s) {
    fits[s] = fit_symmetric<16>(x + 16 * s, w + 16 * s, kLevels, least_of_rms, ratio);
    if (std::fabs(fits[s]) > std::fabs(extreme)) extreme = fits[s];
  }
  block.d = through_half(extreme / -static_cast<float>(kScales));
  const auto error = [&](int s, float step) {
    const float inverse = std::fabs(step) > kLeastValue ? 1.0f / step : 0.0f;
    const Floats v = load(x + 16 * s);
    const Floats rest = v - clamped(rounded(v * inverse), -kLevels, kLevels - 1) * step;
    return sum(load(w + 16 * s) * rest * rest);
  };
  // The integers first one by one, then d for all of them by least squares, then the integers again.
  for (int round = 0; round < 3; ++round) {
    const float inverse = block.d != 0.0f ? 1.0f / block.d : 0.0f;
    float xu = 0.0f, uu = 0.0f;
    for (int s = 0; s < 16; ++s) {
      const int near = std::clamp(static_cast<int>(std::lrint(fits[s] * inverse)), -kScales, kScales - 1);
      float least = 0.0f;
      for (const int by : {0, -1, 1}) {
        const int scale = std::clamp(near + by, -kScales, kScales - 1);
        const float e = error(s, block.d * static_cast<float>(scale));
        if (by == 0 || e < least) {
          least = e;
          block.scales[s] = scale;
        }
      }
      const float step = block.d * static_cast<float>(block.scales[s]);
      const Floats v = load(x + 16 * s);
      const Floats u =
          clamped(rounded(v * (std::fabs(step) > kLeastValue ? 1.0f / step : 0.0f)), -kLevels, kLevels - 1) *
          static_cast<float>(block.scales[s]);
      xu += sum(load(w + 16 * s) * u * v);
      uu += sum(load(w + 16 * s) * u * u);
    }
    if (round == 2 || !(uu > 0.0f)) break;
    const float better = through_half(xu / uu);
    if (better == block.d || better == 0.0f || !std::isfinite(better)) break;
    float before = 0.0f, after = 0.0f;
    for (int s = 0; s < 16; ++s) {
      before += error(s, block.d * static_cast<float>(block.scales[s]));
      after += error(s, better * static_cast<float>(block.scales[s]));
    }
    if (!(after < before)) break;
    block.d = better;
  }
  for (int s = 0; s < 16; ++s) {
    symmetric_codes<16>(x + 16 * s, block.d * static_cast<float>(block.scales[s]), -kLevels, kLevels - 1,
                        block.codes + 16 * s);
  }
  return block;
}

// d f16 and signed 8-bit sub-scales.
void q6_k(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += kSuper) {
    const auto block = fit_symmetric_block<32, 128>(row.values + i, row.weights + i, 0.04f, 0.985f);
    uint8_t* out = row.out + i / kSuper * 210;
    std::memset(out, 0, 192);
    for (int s = 0; s < 16; ++s) out[192 + s] = static_cast<uint8_t>(static_cast<int8_t>(block.scales[s]));
    for (int j = 0; j < kSuper; ++j) {
      const int code = block.codes[j] + 32, in_half = j % 128;
      out[j / 128 * 64 + in_half % 64] |= static_cast<uint8_t>((code & 15) << (in_half / 64 * 4));
      out[128 + j / 128 * 32 + in_half % 32] |= static_cast<uint8_t>((code >> 4) << (in_half / 32 * 2));
    }
    store_u16(out + 208, float_to_half(block.d));
  }
}

// 32 bytes of third bits, 64 of 2-bit codes, 12 of 6-bit scales, d.
void q3_k(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += kSuper) {
    const auto block = fit_symmetric_block<4, 32>(row.values + i, row.weights + i, 0.2f, 0.96f);
    uint8_t* out = row.out + i / kSuper * 110;
    std::memset(out, 0, 108);
    for (int s = 0; s < 16; ++s) {
      const int scale = block.scales[s] + 32;
      out[96 + s % 8] |= static_cast<uint8_t>((scale & 15) << (s / 8 * 4));
      out[104 + s % 4] |= static_cast<uint8_t>((scale >> 4) << (s / 4 * 2));
    }
    for (int j = 0; j < kSuper; ++j) {
      const int code = block.codes[j] + 4;
      out[32 + j / 128 * 32 + j % 32] |= static_cast<uint8_t>((code & 3) << (j % 128 / 32 * 2));
      out[j % 32] |= static_cast<uint8_t>((code >> 2) << (j / 32));
    }
    store_u16(out + 108, float_to_half(block.d));
  }
}

// ------------------------------------------- value = d * scale * code - dmin * minimum, all of them >= 0

/// Q2_K, Q4_K and Q5_K: sub-blocks of kSub values, codes 0 to kCodes, scales and minima 0 to kScales.
template <int kSubBlock, int kMaxCode, int kMaxScale>
struct AffineBlock {
  static constexpr int kSub = kSubBlock, kCodes = kMaxCode, kScales = kMaxScale, kCount = kSuper / kSubBlock;
  float d = 0, dmin = 0;  // representable in float16
  int scales[kCount] = {}, minima[kCount] = {};
};
using Q2K = AffineBlock<16, 3, 15>;
using Q4K = AffineBlock<32, 15, 63>;
using Q5K = AffineBlock<32, 31, 63>;

struct AffineBlockSums {  // of a sub-block, with u = scale * code and v = minimum
  float error = 0, uu = 0, uv = 0, vv = 0, xu = 0, xv = 0;
};

template <class Block>
Floats block_codes(Floats x, float step, float offset) {
  return clamped(rounded((x + offset) * (step > kLeastValue ? 1.0f / step : 0.0f)), 0, Block::kCodes);
}

template <class Block>
float sub_block_error(const float* x, const float* w, float step, float offset) {
  Floats error = {};
  for (int i = 0; i < Block::kSub; i += kLanes) {
    const Floats v = load(x + i);
    const Floats rest = v - (block_codes<Block>(v, step, offset) * step - offset);
    error += load(w + i) * rest * rest;
  }
  return sum(error);
}

template <class Block>
AffineBlockSums block_sums(const float* x, const float* w, const Block& block, int s) {
  const float step = block.d * static_cast<float>(block.scales[s]);
  const float scale = static_cast<float>(block.scales[s]), v = static_cast<float>(block.minima[s]);
  const float offset = block.dmin * v;
  Floats error = {}, su = {}, suu = {}, sxu = {}, sw = {}, sx = {};
  for (int i = 0; i < Block::kSub; i += kLanes) {
    const Floats value = load(x + i), weight = load(w + i);
    const Floats code = block_codes<Block>(value, step, offset);
    const Floats rest = value - (code * step - offset);
    const Floats u = code * scale, weighted = weight * u;
    error += weight * rest * rest;
    su += weighted;
    suu += weighted * u;
    sxu += weighted * value;
    sw += weight;
    sx += weight * value;
  }
  return {sum(error), sum(suu), v * sum(su), v * v * sum(sw), sum(sxu), v * sum(sx)};
}

/// For each sub-block the best scale and minimum near those it has, for the block's d and dmin.
template <class Block>
void refine_integers(const float* x, const float* w, Block& block) {
  for (int s = 0; s < Block::kCount; ++s) {
    const int scale = block.scales[s], minimum = block.minima[s];
    float least = 0.0f;
    bool first = true;
    for (const int by_scale : {0, -1, 1}) {
      for (const int by_minimum : {0, -1, 1}) {
        const int new_scale = scale + by_scale, new_minimum = minimum + by_minimum;
        if (new_scale < 0 || new_scale > Block::kScales || new_minimum < 0 || new_minimum > Block::kScales)
          continue;
        const float error = sub_block_error<Block>(x + Block::kSub * s, w + Block::kSub * s,
                                                   block.d * static_cast<float>(new_scale),
                                                   block.dmin * static_cast<float>(new_minimum));
        if (first || error < least) {
          first = false;
          least = error;
          block.scales[s] = new_scale;
          block.minima[s] = new_minimum;
        }
      }
    }
  }
}

/// Least-squares d and dmin for the block's codes; false where that does not lower the error.
template <class Block>
bool refine_factors(const float* x, const float* w, Block& block) {
  AffineBlockSums total;
  for (int s = 0; s < Block::kCount; ++s) {
    const AffineBlockSums sums = block_sums(x + Block::kSub * s, w + Block::kSub * s, block, s);
    total.error += sums.error;
    total.uu += sums.uu;
    total.uv += sums.uv;
    total.vv += sums.vv;
    total.xu += sums.xu;
    total.xv += sums.xv;
  }
  const float determinant = total.uu * total.vv - total.uv * total.uv;
  Block better = block;
  if (determinant > 1e-6f * total.uu * total.vv) {
    better.d = through_half((total.xu * total.vv - total.xv * total.uv) / determinant);
    better.dmin = through_half((total.xu * total.uv - total.xv * total.uu) / determinant);
  } else if (total.uu > 0.0f) {
    better.d = through_half((total.xu + block.dmin * total.uv) / total.uu);
  }
  if (!(better.d > 0.0f) || !(better.dmin >= 0.0f)) return false;
  float error = 0.0f;
  for (int s = 0; s < Block::kCount; ++s) {
    error += sub_block_error<Block>(x + Block::kSub * s, w + Block::kSub * s,
                                    better.d * static_cast<float>(better.scales[s]),
                                    better.dmin * static_cast<float>(better.minima[s]));
  }
  if (!(error < total.error)) return false;
  block = better;
  return true;
}

template <class Block>
Block fit_block(const float* x, const float* w) {
  Affine fits[Block::kCount];
  float top_scale = 0.0f, top_minimum = 0.0f;
  for (int s = 0; s < Block::kCount; ++s) {
    fits[s] = fit_affine<Block::kSub, Block::kCodes>(x + Block::kSub * s, w + Block::kSub * s);
    top_scale = std::max(top_scale, fits[s].scale);
    top_minimum = std::max(top_minimum, fits[s].minimum);
  }
  Block block;
  block.d = through_half(top_scale / static_cast<float>(Block::kScales));
  block.dmin = through_half(top_minimum / static_cast<float>(Block::kScales));
  for (int s = 0; s < Block::kCount; ++s) {
    if (block.d > 0.0f)
      block.scales[s] = std::min(Block::kScales, static_cast<int>(fits[s].scale / block.d + 0.5f));
    if (block.dmin > 0.0f)
      block.minima[s] = std::min(Block::kScales, static_cast<int>(fits[s].minimum / block.dmin + 0.5f));
  }
  // The integers were rounded one by one: choose them together with the codes, then d and dmin for them.
  for (int round = 0; round < 2; ++round) {
    refine_integers(x, w, block);
    if (!refine_factors(x, w, block)) break;
  }
  return block;
}

/// The 12 bytes of 8 scales and 8 minima of 6 bits: the first four of each whole, the others in two parts.
template <class Block>
void store_six_bits(const Block& block, uint8_t* packed) {
  std::memset(packed, 0, 12);
  for (int s = 0; s < 8; ++s) {
    const int scale = block.scales[s], minimum = block.minima[s];
    if (s < 4) {
      packed[s] |= static_cast<uint8_t>(scale);
      packed[s + 4] |= static_cast<uint8_t>(minimum);
    } else {
      packed[s + 4] = static_cast<uint8_t>((scale & 15) | (minimum & 15) << 4);
      packed[s - 4] |= static_cast<uint8_t>((scale >> 4) << 6);
      packed[s] |= static_cast<uint8_t>((minimum >> 4) << 6);
    }
  }
}

/// The block's codes, [256].
template <class Block>
void codes_of(const float* x, const Block& block, uint8_t* codes) {
  for (int j = 0; j < kSuper; j += kLanes) {
    const int s = j / Block::kSub;
    float values[kLanes];
    store(values, block_codes<Block>(load(x + j), block.d * static_cast<float>(block.scales[s]),
                                     block.dmin * static_cast<float>(block.minima[s])));
    for (int l = 0; l < kLanes; ++l) codes[j + l] = static_cast<uint8_t>(static_cast<int>(values[l]));
  }
}

// 16 bytes of 4-bit (scale, minimum), 64 of 2-bit codes, d, dmin.
void q2_k(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += kSuper) {
    const auto block = fit_block<Q2K>(row.values + i, row.weights + i);
    uint8_t* out = row.out + i / kSuper * 84;
    uint8_t codes[kSuper];
    codes_of(row.values + i, block, codes);
    for (int s = 0; s < 16; ++s) out[s] = static_cast<uint8_t>(block.scales[s] | block.minima[s] << 4);
    std::memset(out + 16, 0, 64);
    for (int j = 0; j < kSuper; ++j) {
      out[16 + j / 128 * 32 + j % 32] |= static_cast<uint8_t>(codes[j] << (j % 128 / 32 * 2));
    }
    store_u16(out + 80, float_to_half(block.d));
    store_u16(out + 82, float_to_half(block.dmin));
  }
}

// d, dmin, 12 bytes of scales and minima, for Q5_K 32 bytes of fifth bits, 128 of 4-bit codes.
template <class Block>
void q4_or_q5_k(const RowTask& row) {
  constexpr int kHigh = Block::kCodes == 31 ? 32 : 0, kBytes = 144 + kHigh;
  for (int64_t i = 0; i < row.cols; i += kSuper) {
    const auto block = fit_block<Block>(row.values + i, row.weights + i);
    uint8_t* out = row.out + i / kSuper * kBytes;
    std::memset(out, 0, kBytes);
    store_u16(out, float_to_half(block.d));
    store_u16(out + 2, float_to_half(block.dmin));
    store_six_bits(block, out + 4);
    uint8_t codes[kSuper];
    codes_of(row.values + i, block, codes);
    for (int j = 0; j < kSuper; ++j) {
      if constexpr (kHigh != 0) out[16 + j % 32] |= static_cast<uint8_t>((codes[j] >> 4) << (j / 32));
      out[16 + kHigh + j / 64 * 32 + j % 32] |= static_cast<uint8_t>((codes[j] & 15) << (j % 64 / 32 * 4));
    }
  }
}

}  // namespace
}  // namespace bitqwen
