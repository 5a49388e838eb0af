// The encoders, written once over 16 floats at a time; no contraction, so that each instruction set
// makes the same bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "quant/fits.h"
#include "quant/row_encoder.h"

namespace bitqwen {
namespace {

using gguf::TensorType;

void store_u16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }

/// What the error of each value weighs: importance x sqrt(mean square of the row + value^2), the weighting of
/// llama.cpp's fits with an importance matrix. Errors of large weights then cost more than their share.
void error_weights(const RowTask& row) {
  Floats squares = {};
  for (int64_t i = 0; i < row.cols; i += kLanes) {
    const Floats x = load(row.values + i);
    squares += x * x;
  }
  const float mean = sum(squares) / static_cast<float>(row.cols);
  for (int64_t i = 0; i < row.cols; i += kLanes) {
    float all[kLanes];
    store(all, load(row.values + i));
    for (int j = 0; j < kLanes; ++j) all[j] = std::sqrt(mean + all[j] * all[j]);
    Floats w = load(all);
    if (row.importance) w = w * load(row.importance + i);
    store(row.weights + i, w);
  }
}

// ---------------------------------------------------------------------------------------- flat types

void q8_0(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const Floats first = load(row.values + i), second = load(row.values + i + kLanes);
    uint8_t* out = row.out + i / 32 * 34;
    const float d = maximum(maximum(absolute(first), absolute(second))) / 127.0f;
    const float inverse = d != 0.0f ? std::min(1.0f / d, 3e38f) : 0.0f;
    store_u16(out, float_to_half(d));
    float codes[32];
    store(codes, rounded_away(first * inverse));
    store(codes + kLanes, rounded_away(second * inverse));
    for (int j = 0; j < 32; ++j) out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(codes[j]));
  }
}

void store_q4_0(const int32_t* codes, float d, uint8_t* out) {
  store_u16(out, float_to_half(d));
  for (int j = 0; j < 16; ++j) out[2 + j] = static_cast<uint8_t>((codes[j] + 8) | (codes[j + 16] + 8) << 4);
}

void q4_0_plain(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const float* x = row.values + i;
    float extreme = 0.0f;
    for (int j = 0; j < 32; ++j) {
      if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
    }
    const float d = extreme / -8.0f;
    // Infinite for the smallest subnormal numbers, which float16 stores as zero.
    const float inverse = d != 0.0f && !std::isinf(1.0f / d) ? 1.0f / d : 0.0f;
    int32_t codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = std::min(15, static_cast<int>(x[j] * inverse + 8.5f)) - 8;
    store_q4_0(codes, d, row.out + i / 32 * 18);
  }
}

void q4_0_fitted(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const float* x = row.values + i;
    const float d = through_half(fit_symmetric<32>(x, row.weights + i, 8, 0.2f, 0.96f));
    int32_t codes[32];
    symmetric_codes<32>(x, d, -8, 7, codes);
    store_q4_0(codes, d, row.out + i / 32 * 18);
  }
}

void store_q2_0(const int32_t* codes, float d, uint8_t* out) {
  store_u16(out, float_to_half(d));
  for (int j = 0; j < 16; ++j) {
    uint8_t byte = 0;
    for (int b = 0; b < 4; ++b) byte = static_cast<uint8_t>(byte | (codes[4 * j + b] + 1) << (2 * b));
    out[2 + j] = byte;
  }
}

void store_tq2_0(const int32_t* codes, float d, uint8_t* out) {
  for (int j = 0; j < 64; ++j) {
    uint8_t byte = 0;
    for (int b = 0; b < 4; ++b) {
      byte = static_cast<uint8_t>(byte | (codes[j / 32 * 128 + b * 32 + j % 32] + 1) << (2 * b));
    }
    out[j] = byte;
  }
  store_u16(out + 64, float_to_half(d));
}

/// Q2_0 and TQ2_0: codes from -1 to kHigh.
template <int kSize, int kHigh>
void few_levels(const RowTask& row, Fit fit, int block_bytes,
                void (*store_block)(const int32_t*, float, uint8_t*)) {
  for (int64_t i = 0; i < row.cols; i += kSize) {
    const float* x = row.values + i;
    const bool absmean = fit == Fit::kAbsmean;
    const float scale = absmean ? row.matrix_scale : fit_few_levels<kSize, kHigh>(x, row.weights + i);
    const float d = through_half(scale);
    int32_t codes[kSize];
    symmetric_codes<kSize>(x, absmean ? scale : d, -1, kHigh, codes);
    store_block(codes, d, row.out + i / kSize * block_bytes);
  }
}

// ------------------------------------------------------------------------------------------ K-quants

// d f16 and signed 8-bit sub-scales: sub-blocks of 16, codes -32 to 31.
void q6_k(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 256) {
    const float* x = row.values + i;
    uint8_t* out = row.out + i / 256 * 210;
    float scales[16], extreme = 0.0f;
    for (int s = 0; s < 16; ++s) {
      scales[s] = fit_symmetric<16>(x + 16 * s, row.weights + i + 16 * s, 32, 0.04f, 0.985f);
      if (std::fabs(scales[s]) > std::fabs(extreme)) extreme = scales[s];
    }
    const float d = through_half(extreme / -128.0f);
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    int32_t codes[256];
    for (int s = 0; s < 16; ++s) {
      const int sub = std::clamp(static_cast<int>(std::lrint(scales[s] * inverse)), -128, 127);
      symmetric_codes<16>(x + 16 * s, d * static_cast<float>(sub), -32, 31, codes + 16 * s);
      out[192 + s] = static_cast<uint8_t>(static_cast<int8_t>(sub));
    }
    std::memset(out, 0, 192);
    for (int j = 0; j < 256; ++j) {
      const int code = codes[j] + 32, in_half = j % 128;
      out[j / 128 * 64 + in_half % 64] |= static_cast<uint8_t>((code & 15) << (in_half / 64 * 4));
      out[128 + j / 128 * 32 + in_half % 32] |= static_cast<uint8_t>((code >> 4) << (in_half / 32 * 2));
    }
    store_u16(out + 208, float_to_half(d));
  }
}

// A block of 256 values in 8 sub-blocks of 32: value = d * scale * code - dmin * minimum.
struct Q4K {
  float d = 0, dmin = 0;               // representable in float16
  int scales[8] = {}, minima[8] = {};  // 0 to 63
};

struct Q4KSums {  // of a sub-block, with u = scale * code and v = minimum
  float error = 0, uu = 0, uv = 0, vv = 0, xu = 0, xv = 0;
};

Floats q4_k_codes(Floats x, float step, float offset) {
  return clamped(rounded((x + offset) * (step > kLeastValue ? 1.0f / step : 0.0f)), 0, 15);
}

float q4_k_error(const float* x, const float* w, float step, float offset) {
  Floats error = {};
  for (int i = 0; i < 32; i += kLanes) {
    const Floats v = load(x + i);
    const Floats rest = v - (q4_k_codes(v, step, offset) * step - offset);
    error += load(w + i) * rest * rest;
  }
  return sum(error);
}

Q4KSums q4_k_sums(const float* x, const float* w, const Q4K& block, int s) {
  const float step = block.d * static_cast<float>(block.scales[s]);
  const float scale = static_cast<float>(block.scales[s]), v = static_cast<float>(block.minima[s]);
  const float offset = block.dmin * v;
  Floats error = {}, su = {}, suu = {}, sxu = {}, sw = {}, sx = {};
  for (int i = 0; i < 32; i += kLanes) {
    const Floats value = load(x + i), weight = load(w + i);
    const Floats code = q4_k_codes(value, step, offset);
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
void q4_k_refine_integers(const float* x, const float* w, Q4K& block) {
  for (int s = 0; s < 8; ++s) {
    const int scale = block.scales[s], minimum = block.minima[s];
    float least = 0.0f;
    bool first = true;
    for (const int by_scale : {0, -1, 1}) {
      for (const int by_minimum : {0, -1, 1}) {
        const int new_scale = scale + by_scale, new_minimum = minimum + by_minimum;
        if (new_scale < 0 || new_scale > 63 || new_minimum < 0 || new_minimum > 63) continue;
        const float error = q4_k_error(x + 32 * s, w + 32 * s, block.d * static_cast<float>(new_scale),
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
bool q4_k_refine_factors(const float* x, const float* w, Q4K& block) {
  Q4KSums total;
  for (int s = 0; s < 8; ++s) {
    const Q4KSums sums = q4_k_sums(x + 32 * s, w + 32 * s, block, s);
    total.error += sums.error;
    total.uu += sums.uu;
    total.uv += sums.uv;
    total.vv += sums.vv;
    total.xu += sums.xu;
    total.xv += sums.xv;
  }
  const float determinant = total.uu * total.vv - total.uv * total.uv;
  Q4K better = block;
  if (determinant > 1e-6f * total.uu * total.vv) {
    better.d = through_half((total.xu * total.vv - total.xv * total.uv) / determinant);
    better.dmin = through_half((total.xu * total.uv - total.xv * total.uu) / determinant);
  } else if (total.uu > 0.0f) {
    better.d = through_half((total.xu + block.dmin * total.uv) / total.uu);
  }
  if (!(better.d > 0.0f) || !(better.dmin >= 0.0f)) return false;
  float error = 0.0f;
  for (int s = 0; s < 8; ++s) {
    error += q4_k_error(x + 32 * s, w + 32 * s, better.d * static_cast<float>(better.scales[s]),
                        better.dmin * static_cast<float>(better.minima[s]));
  }
  if (!(error < total.error)) return false;
  block = better;
  return true;
}

Q4K fit_q4_k(const float* x, const float* w) {
  Affine fits[8];
  float top_scale = 0.0f, top_minimum = 0.0f;
  for (int s = 0; s < 8; ++s) {
    fits[s] = fit_affine(x + 32 * s, w + 32 * s);
    top_scale = std::max(top_scale, fits[s].scale);
    top_minimum = std::max(top_minimum, fits[s].minimum);
  }
  Q4K block;
  block.d = through_half(top_scale / 63.0f);
  block.dmin = through_half(top_minimum / 63.0f);
  for (int s = 0; s < 8; ++s) {
    if (block.d > 0.0f) block.scales[s] = std::min(63, static_cast<int>(fits[s].scale / block.d + 0.5f));
    if (block.dmin > 0.0f)
      block.minima[s] = std::min(63, static_cast<int>(fits[s].minimum / block.dmin + 0.5f));
  }
  // The integers were rounded one by one: choose them together with the codes, then d and dmin for them.
  for (int round = 0; round < 2; ++round) {
    q4_k_refine_integers(x, w, block);
    if (!q4_k_refine_factors(x, w, block)) break;
  }
  return block;
}

void store_q4_k(const float* x, const Q4K& block, uint8_t* out) {
  std::memset(out, 0, 144);
  store_u16(out, float_to_half(block.d));
  store_u16(out + 2, float_to_half(block.dmin));
  uint8_t* packed = out + 4;  // the first four of each 6-bit row whole, the others in two parts
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
    const float step = block.d * static_cast<float>(scale), offset = block.dmin * static_cast<float>(minimum);
    for (int j = 0; j < 32; j += kLanes) {
      float codes[kLanes];
      store(codes, q4_k_codes(load(x + 32 * s + j), step, offset));
      for (int l = 0; l < kLanes; ++l) {
        out[16 + s / 2 * 32 + j + l] |= static_cast<uint8_t>(static_cast<int>(codes[l]) << (s % 2 * 4));
      }
    }
  }
}

void q4_k(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 256) {
    store_q4_k(row.values + i, fit_q4_k(row.values + i, row.weights + i), row.out + i / 256 * 144);
  }
}

// --------------------------------------------------------------------------------------- float types

void f32(const RowTask& row) { std::memcpy(row.out, row.values, static_cast<size_t>(row.cols) * 4); }
void f16(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; ++i) store_u16(row.out + 2 * i, float_to_half(row.values[i]));
}
void bf16(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row.values + i, sizeof bits);
    bits += 0x7fff + (bits >> 16 & 1);  // the pipeline has refused NaN before
    store_u16(row.out + 2 * i, static_cast<uint16_t>(bits >> 16));
  }
}

void encode_row(TensorType type, Fit fit, const RowTask& row) {
  if (fit != Fit::kPlain && fit != Fit::kAbsmean) error_weights(row);
  const bool ternary = fit != Fit::kMse;
  switch (type) {
    case TensorType::kF32: return f32(row);
    case TensorType::kF16: return f16(row);
    case TensorType::kBF16: return bf16(row);
    case TensorType::kQ8_0: return q8_0(row);
    case TensorType::kQ4_0: return fit == Fit::kPlain ? q4_0_plain(row) : q4_0_fitted(row);
    case TensorType::kQ4_K: return q4_k(row);
    case TensorType::kQ6_K: return q6_k(row);
    case TensorType::kQ2_0:
      return ternary ? few_levels<64, 1>(row, fit, 18, store_q2_0)
                     : few_levels<64, 2>(row, fit, 18, store_q2_0);
    case TensorType::kTQ2_0: return few_levels<256, 1>(row, fit, 66, store_tq2_0);
    default: return;  // can_encode() has said so
  }
}

}  // namespace
}  // namespace bitqwen
