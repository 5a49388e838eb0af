// The encoders, written once over 16 floats at a time; no contraction, so that each instruction set
// makes the same bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "half.h"
#include "vectors.h"
#include "quant/row_encoder.h"

namespace bitqwen {
namespace {

using gguf::TensorType;

void store_u16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }
Floats rounded(Floats x) { return (x + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23; |x| < 2^22
Floats clamped(Floats x, float low, float high) {
  const Floats l = splat(low), h = splat(high);
  x = x < l ? l : x;
  return x > h ? h : x;
}
Floats absolute(Floats x) { return x < 0.0f ? -x : x; }

/// What the error of each value weighs: importance x sqrt(mean square of the row + value^2). Errors of
/// large weights cost more than their share of the squared error: a fit with a larger plain error
/// but smaller error there keeps the model's output closer (measured: docs/quality.md).
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
    if (row.importance) w *= load(row.importance + i);
    store(row.weights + i, w);
  }
}

// ------------------------------------------------------------------ scale x code, codes low to high

struct SymmetricSums {
  float xc = 0;  // sum of weight * value * code
  float cc = 0;  // sum of weight * code^2
};

template <int kSize>
SymmetricSums symmetric_sums(const float* x, const float* w, float inverse, float low, float high) {
  Floats xc = {}, cc = {};
  for (int i = 0; i < kSize; i += kLanes) {
    const Floats v = load(x + i);
    const Floats c = clamped(rounded(v * inverse), low, high);
    const Floats wc = load(w + i) * c;
    xc += wc * v;
    cc += wc * c;
  }
  return {sum(xc), sum(cc)};
}

/// The scale (of either sign) that minimises sum w (x - scale * code)^2, by a geometric search from
/// well inside the distribution to its largest value and least-squares steps on the best.
template <int kSize>
float fit_symmetric(const float* x, const float* w, float low, float high, float least_of_rms, int steps) {
  Floats largest = {}, squares = {};
  for (int i = 0; i < kSize; i += kLanes) {
    const Floats v = load(x + i);
    largest = maximum(largest, absolute(v));
    squares += v * v;
  }
  const float top = maximum(largest);
  // Below this a scale's inverse overflows; such a block is zero in float16 anyway.
  if (!(top > 1e-30f)) return 0.0f;
  const float limit = std::max(-low, high);
  const float last = top / limit * 1.02f;
  const float first = std::min(last, std::sqrt(sum(squares) / kSize) * least_of_rms);
  const float ratio = steps > 1 ? std::exp(std::log(last / first) / static_cast<float>(steps - 1)) : 1.0f;
  const bool one_sided = -low == high;
  float best_gain = 0.0f, best = 0.0f;
  const auto consider = [&](float scale) {
    const SymmetricSums sums = symmetric_sums<kSize>(x, w, 1.0f / scale, low, high);
    if (sums.cc <= 0.0f) return;
    const float gain = sums.xc * sums.xc / sums.cc;  // how much of sum w x^2 is explained
    if (gain > best_gain) {
      best_gain = gain;
      best = sums.xc / sums.cc;
    }
  };
  float scale = first;
  for (int i = 0; i < steps; ++i, scale *= ratio) {
    consider(scale);
    if (!one_sided) consider(-scale);
  }
  for (int i = 0; i < 3 && best != 0.0f; ++i) {
    const float before = best;
    consider(best);
    if (best == before) break;
  }
  return best;
}

template <int kSize>
void symmetric_codes(const float* x, float scale, float low, float high, int* codes) {
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < kSize; i += kLanes) {
    float c[kLanes];
    store(c, clamped(rounded(load(x + i) * inverse), low, high));
    for (int j = 0; j < kLanes; ++j) codes[i + j] = static_cast<int>(c[j]);
  }
}

// The scale as the file will hold it.
float through_half(float scale) { return half_to_float(float_to_half(scale)); }

// ---------------------------------------------------------------------------------------- flat types

void q8_0(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const float* x = row.values + i;
    uint8_t* out = row.out + i / 32 * 34;
    float largest = 0.0f;
    for (int j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
    const float d = largest / 127.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    store_u16(out, float_to_half(d));
    for (int j = 0; j < 32; ++j)
      out[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[j] * inverse)));
  }
}

void store_q4_0(const int* codes, float d, uint8_t* out) {
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
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    int codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = std::min(15, static_cast<int>(x[j] * inverse + 8.5f)) - 8;
    store_q4_0(codes, d, row.out + i / 32 * 18);
  }
}

void q4_0_fitted(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 32) {
    const float* x = row.values + i;
    const float d = through_half(fit_symmetric<32>(x, row.weights + i, -8, 7, 0.2f, 32));
    int codes[32];
    symmetric_codes<32>(x, d, -8, 7, codes);
    store_q4_0(codes, d, row.out + i / 32 * 18);
  }
}

void store_q2_0(const int* codes, float d, uint8_t* out) {
  store_u16(out, float_to_half(d));
  for (int j = 0; j < 16; ++j) {
    uint8_t byte = 0;
    for (int b = 0; b < 4; ++b) byte = static_cast<uint8_t>(byte | (codes[4 * j + b] + 1) << (2 * b));
    out[2 + j] = byte;
  }
}

void store_tq2_0(const int* codes, float d, uint8_t* out) {
  for (int j = 0; j < 64; ++j) {
    uint8_t byte = 0;
    for (int b = 0; b < 4; ++b) {
      byte = static_cast<uint8_t>(byte | (codes[j / 32 * 128 + b * 32 + j % 32] + 1) << (2 * b));
    }
    out[j] = byte;
  }
  store_u16(out + 64, float_to_half(d));
}

/// Q2_0 and TQ2_0; `high` is 2 or 1.
template <int kSize>
void two_bits(const RowTask& row, Fit fit, float high, int block_bytes,
              void (*store_block)(const int*, float, uint8_t*)) {
  for (int64_t i = 0; i < row.cols; i += kSize) {
    const float* x = row.values + i;
    const float d =
        through_half(fit == Fit::kAbsmean ? row.matrix_scale
                                          : fit_symmetric<kSize>(x, row.weights + i, -1, high, 0.5f, 40));
    int codes[kSize];
    symmetric_codes<kSize>(x, fit == Fit::kAbsmean ? row.matrix_scale : d, -1, high, codes);
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
      scales[s] = fit_symmetric<16>(x + 16 * s, row.weights + i + 16 * s, -32, 31, 0.04f, 16);
      if (std::fabs(scales[s]) > std::fabs(extreme)) extreme = scales[s];
    }
    const float d = through_half(extreme / -128.0f);
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    int codes[256];
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

struct Affine {
  float scale = 0, minimum = 0;  // value = scale * code - minimum, minimum >= 0
};

struct AffineSums {
  float w = 0, wx = 0, wc = 0, wcc = 0, wxc = 0;
};

AffineSums affine_sums(const float* x, const float* w, float inverse, float offset) {
  Floats sw = {}, swx = {}, swc = {}, swcc = {}, swxc = {};
  for (int i = 0; i < 32; i += kLanes) {
    const Floats v = load(x + i), weight = load(w + i);
    const Floats c = clamped(rounded((v + offset) * inverse), 0, 15);
    sw += weight;
    swx += weight * v;
    swc += weight * c;
    swcc += weight * c * c;
    swxc += weight * c * v;
  }
  return {sum(sw), sum(swx), sum(swc), sum(swcc), sum(swxc)};
}

/// Least squares for fixed codes with the minimum held at or above zero; gain: what it explains.
float solve_affine(const AffineSums& s, Affine& fit) {
  const float determinant = s.w * s.wcc - s.wc * s.wc;
  if (determinant > 0.0f) {
    const float scale = (s.w * s.wxc - s.wx * s.wc) / determinant;
    const float minimum = (s.wc * s.wxc - s.wcc * s.wx) / determinant;
    if (minimum >= 0.0f && scale > 0.0f) {
      fit = {scale, minimum};
      return scale * s.wxc - minimum * s.wx;
    }
  }
  if (s.wcc > 0.0f && s.wxc > 0.0f) {
    fit = {s.wxc / s.wcc, 0.0f};
    return fit.scale * s.wxc;
  }
  return -1.0f;
}

Affine fit_affine(const float* x, const float* w) {
  float low = 0.0f, high = x[0];
  for (int i = 0; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (!(high - low > 1e-30f)) return {};
  Affine best;
  float best_gain = 0.0f;
  const auto consider = [&](float inverse, float offset) {
    Affine fit;
    const float gain = solve_affine(affine_sums(x, w, inverse, offset), fit);
    if (gain > best_gain) {
      best_gain = gain;
      best = fit;
    }
  };
  // From 14 to 22 steps over the range: the last ones clip the extremes.
  for (float steps = 14.0f; steps <= 22.0f; steps += 0.5f) {
    consider(steps / (high - low), -low);
    consider(steps / (high - low), -low - (steps - 15.0f) / steps * (high - low) * 0.5f);
  }
  for (int i = 0; i < 3 && best.scale > 0.0f; ++i) {
    const float before = best_gain;
    consider(1.0f / best.scale, best.minimum);
    if (best_gain == before) break;
  }
  return best;
}

// d and dmin f16, 6-bit scales and minima of 8 sub-blocks of 32, 4-bit codes.
void q4_k(const RowTask& row) {
  for (int64_t i = 0; i < row.cols; i += 256) {
    const float* x = row.values + i;
    uint8_t* out = row.out + i / 256 * 144;
    Affine fits[8];
    float top_scale = 0.0f, top_minimum = 0.0f;
    for (int s = 0; s < 8; ++s) {
      fits[s] = fit_affine(x + 32 * s, row.weights + i + 32 * s);
      top_scale = std::max(top_scale, fits[s].scale);
      top_minimum = std::max(top_minimum, fits[s].minimum);
    }
    const float d = through_half(top_scale / 63.0f), dmin = through_half(top_minimum / 63.0f);
    store_u16(out, float_to_half(d));
    store_u16(out + 2, float_to_half(dmin));
    std::memset(out + 4, 0, 140);
    for (int s = 0; s < 8; ++s) {
      const int scale = d > 0.0f ? std::clamp(static_cast<int>(std::lrint(fits[s].scale / d)), 0, 63) : 0;
      const int minimum =
          dmin > 0.0f ? std::clamp(static_cast<int>(std::lrint(fits[s].minimum / dmin)), 0, 63) : 0;
      uint8_t* packed = out + 4;
      if (s < 4) {
        packed[s] |= static_cast<uint8_t>(scale);
        packed[s + 4] |= static_cast<uint8_t>(minimum);
      } else {
        packed[s + 4] = static_cast<uint8_t>((scale & 15) | (minimum & 15) << 4);
        packed[s - 4] |= static_cast<uint8_t>((scale >> 4) << 6);
        packed[s] |= static_cast<uint8_t>((minimum >> 4) << 6);
      }
      const float step = d * static_cast<float>(scale), offset = dmin * static_cast<float>(minimum);
      const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
      for (int j = 0; j < 32; j += kLanes) {
        float codes[kLanes];
        store(codes, clamped(rounded((load(x + 32 * s + j) + offset) * inverse), 0, 15));
        for (int l = 0; l < kLanes; ++l) {
          out[16 + s / 2 * 32 + j + l] |= static_cast<uint8_t>(static_cast<int>(codes[l]) << (s % 2 * 4));
        }
      }
    }
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
  const float high = fit == Fit::kMse ? 2.0f : 1.0f;
  switch (type) {
    case TensorType::kF32: return f32(row);
    case TensorType::kF16: return f16(row);
    case TensorType::kBF16: return bf16(row);
    case TensorType::kQ8_0: return q8_0(row);
    case TensorType::kQ4_0: return fit == Fit::kPlain ? q4_0_plain(row) : q4_0_fitted(row);
    case TensorType::kQ4_K: return q4_k(row);
    case TensorType::kQ6_K: return q6_k(row);
    case TensorType::kQ2_0: return two_bits<64>(row, fit, high, 18, store_q2_0);
    case TensorType::kTQ2_0: return two_bits<256>(row, fit, 1.0f, 66, store_tq2_0);
    default: return;  // can_encode() has said so
  }
}

}  // namespace
}  // namespace bitqwen
